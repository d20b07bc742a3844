"""Docs that can be checked are checked."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from bids_app.study.choice import RULE
from tests.skeletons import make_empty

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["outputs.md", "options.md", "models.md"])
def test_generated_pages_are_what_the_app_says(name: str):
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"][name]
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page()


def test_every_code_of_a_problem_is_explained():
    told = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    files = [path for part in ("study", "workflow") for path in (ROOT / "bids_app" / part).glob("*.py")]
    codes = {code for path in files for code in re.findall(r'Problem\(\s*"([a-z0-9-]+)"', path.read_text())}
    assert len(codes) > 5
    assert not [code for code in sorted(codes) if f"`{code}`" not in told]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_hold(page: Path):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_usage_page_tells_the_rule_by_which_scans_are_chosen():
    assert RULE in " ".join((ROOT / "docs" / "usage.md").read_text(encoding="utf-8").split())


def test_the_readme_starts_with_the_two_commands():
    commands = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make demo", "make test"]


def test_the_query_of_the_outputs_leaves_out_the_synthetic_image(tmp_path: Path):
    page = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    [code] = [part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pseudohealthy" in part]
    names = ("T1w", "desc-preproc_T1w", "space-T1w_desc-pseudohealthy_T1w", "space-MNI152NLin2009aSym_desc-preproc_T1w")
    make_empty(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    (tmp_path / "dataset_description.json").write_text('{"Name": "Out", "BIDSVersion": "1.9.0"}')
    found = {"OUT": tmp_path}
    exec(code, found)
    assert sorted(file.filename for file in found["scans"]) == sorted(
        f"sub-01_{name}.nii.gz" for name in names if "pseudohealthy" not in name
    )
