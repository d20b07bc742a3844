"""What all command lines of the App share: a parser that tells mistakes in a sentence, and ways to add options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bids_app.environment import expanded
from bids_app.errors import UsageError
from bids_app.wording import did_you_mean

_CONTRACT = """\
Options may be written with underscores for hyphens (--participant_label), labels with their prefix (sub-01).
Put the options after the positional arguments. Nothing is ever sent or downloaded.

exit codes: 0 done; 1 a visit failed; 2 usage; 65 the dataset is unusable; 66 no input; 69 a device or template is
missing; 70 internal error; 73 cannot write; 78 bad configuration; 129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM

To run one scan that is in no BIDS dataset: afterstroke case T1W [FLAIR] OUT (see: afterstroke case --help)
To train models on your own scans: afterstroke train WHAT [options] (see: afterstroke train --help)
Research use only: not a medical device."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing the whole usage.

    Attributes
    ----------
    verbose : bool
        Whether ``--version`` tells more than the version.
    """

    verbose = False

    def parse_args(self, args=None, namespace=None):
        """As argparse does, with one sentence about what it does not know."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found

    def error(self, message: str) -> NoReturn:
        hint = f"See {self.prog} --help."
        if message.startswith("the following arguments are required") and self.positionals:
            hint = f"Put {self.positionals} first, then the options. {hint}"
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint)

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise, and suggest the option that was most likely meant."""
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if not options:
            raise UsageError(f"{' '.join(unknown)}: nothing was expected there.", f"See {self.prog} --help.")
        known = [option for action in self._actions for option in action.option_strings]
        what = "no option" if len(options) == 1 else "no options"
        raise UsageError(
            f"{' and '.join(options)}: {what} of {self.prog}.{did_you_mean(options[0], known)}",
            f"See {self.prog} --help.",
        )

    @property
    def positionals(self) -> str:
        return " ".join(str(action.metavar) for action in self._actions if not action.option_strings)


def make_parser(prog: str, usage: str, description: str) -> Parser:
    """A parser whose help ends with what holds for all commands; options that are not given are left out."""
    return Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=_CONTRACT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )


def add(group: argparse._ArgumentGroup, option: str, text: str, metavar: str, type=str, **more: Any) -> None:
    """Add an option that takes a value; `option` may hold several spellings."""
    group.add_argument(*option.split(), help=text, metavar=metavar, type=type, **more)


def add_several(group: argparse._ArgumentGroup, option: str, text: str, metavar: str, **more: Any) -> None:
    """Add an option that takes several values, at once or by being given again."""
    add(group, option, text, metavar, nargs="+", action="extend", **more)


def add_flag(
    group: argparse._ArgumentGroup,
    option: str,
    text: str,
    action: str | type[argparse.Action] = "store_true",
    **more: Any,
) -> None:
    """Add an option without a value."""
    group.add_argument(*option.split(), help=text, action=action, **more)


def hyphenated(argument: str) -> str:
    """An option with hyphens for underscores; everything else as it is.

    >>> hyphenated("--participant_label"), hyphenated("--derivatives=my_name=x"), hyphenated("sub_01")
    ('--participant-label', '--derivatives=my_name=x', 'sub_01')
    """
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value if argument.startswith("--") else argument


def choice(known: Sequence[str], what: str) -> Callable[[str], str]:
    """A type of argument that is one of several words, and suggests one where none of them was given.

    Parameters
    ----------
    what : str
        What the words are, as ``level``.
    """

    def read(text: str) -> str:
        if text not in known:
            raise UsageError(f"'{text}' is no {what}.{did_you_mean(text, known)}", f"There are {', '.join(known)}.")
        return text

    return read


def absolute(value: Any) -> Any:
    """Paths, also those in a mapping, as absolute ones; a ``~`` of no user stays, and there is no such folder.

    Raises
    ------
    UsageError
        If a relative path is given, or the default of one, and the current folder is not there any more.
    """
    if isinstance(value, Path):
        try:
            return expanded(value).absolute()
        except FileNotFoundError:
            raise UsageError(
                f"The current folder has been removed, so it is not known where {value} is.",
                "Go to another folder (cd), or give absolute paths and --work-dir.",
            ) from None
    if isinstance(value, Mapping):
        return {key: absolute(path) for key, path in value.items()}
    return value


def labels_without(labels: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Labels without prefix, each once, in the order given; several may be joined by commas, which no label has.

    >>> labels_without(["sub-01,02", "01", "sub-03/"], "sub-")
    ('01', '02', '03')
    """
    parts = (part.strip() for label in labels for part in label.split(","))
    return tuple(dict.fromkeys(part.rstrip("/").removeprefix(prefix) for part in parts if part))
