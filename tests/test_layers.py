"""Data goes down and never back up: a module imports only from lower layers, or from its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Lowest first. A room is the first component below ``bids_app``; ``derivatives.names`` lies below its room.
LAYERS = (
    {"errors", "data", "wording"},
    {"text"},
    {"settings", "images", "environment", "process"},
    {"derivatives.names", "templateflow_cache"},
    {"networks", "measures", "study"},
    {"preprocessing", "lesion", "anomaly"},
    {"derivatives"},
    {"reports", "group"},
    {"workflow"},
    {"training"},
    {"cli_options"},
    {"cli_training"},
    {"cli_parser"},
    {"cli"},
)


def room_of(module: str) -> str:
    """``derivatives.names`` for that module, else the component after ``bids_app``."""
    parts = module.split(".")[1:]
    return "derivatives.names" if parts[:2] == ["derivatives", "names"] else ".".join(parts[:1])


def layer_of(room: str) -> int:
    return next(index for index, rooms in enumerate(LAYERS) if room in rooms)


def imported_modules(source: str) -> set[str]:
    """Full names of what a module imports from ``bids_app``, inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("bids_app.")}


MODULES = sorted((ROOT / "bids_app").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_lower_layers(path: Path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "bids_app":
        return
    own = room_of(module)
    for name in imported_modules(path.read_text(encoding="utf-8")):
        other = room_of(name)
        if other in (own, "app_version") or {own, other} == {"derivatives", "derivatives.names"}:
            continue
        assert layer_of(other) < layer_of(own), f"{module} imports {name}"


def test_the_check_sees_forbidden_imports():
    assert imported_modules("def f():\n    from bids_app.workflow import run") == {"bids_app.workflow.run"}
    assert layer_of("workflow") > layer_of("lesion")


def test_training_is_imported_by_training_commands_only():
    for path in MODULES:
        relative = path.relative_to(ROOT / "bids_app")
        if relative.parts[0] in ("training", "cli.py"):
            continue
        assert not any(room_of(name) == "training" for name in imported_modules(path.read_text(encoding="utf-8")))


LIMIT, SHARE_UNDER_45 = 100, 0.9


def test_functions_stay_small():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > LIMIT}
    assert sum(lines <= 45 for lines in lengths.values()) >= SHARE_UNDER_45 * len(lengths)


def test_the_app_knows_nothing_of_how_its_models_were_made():
    """``research`` is in the repository and not in the installed package."""
    for path in sorted((ROOT / "bids_app").rglob("*.py")):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.partition(".")[0] == "research"], path
