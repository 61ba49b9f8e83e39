"""The command `raysers`: one subcommand a job, imported when it is called."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from raysers import __version__

T = TypeVar("T")

#: By subcommand: its module, where its output goes without -o, and what it does.
COMMANDS = {
    "annotate": ("archive", "emotions", "emotion scores for every clip of an archive"),
    "read": ("archive", "", "the rows of an output, on the screen or as CSV or Excel"),
    "transcribe": ("archive", "transcripts", "a transcript of every clip"),
    "index": ("archive", "manifest", "a manifest of clips from folders, tars, tables or corpora"),
    "train": ("training", "model", "fine-tune a speech backbone on labelled clips"),
    "tune": ("training", "sweep", "search the flags of train for the best model"),
    "fuse": ("fusion", "fusion", "train, or predict with, emotion from audio and text"),
    "evaluate": ("analyses", "evaluation", "compare predictions with labels, with intervals"),
    "robustness": ("analyses", "robustness", "how scores change in noise, rooms, on the phone"),
    "probe": ("analyses", "probe", "how much a model depends on linguistic content"),
    "synthesize": ("speech", "speech", "synthetic speech from texts"),
    "study": ("training", "study", "grids of trainings and analyses, as in the paper"),
    "report": ("analyses", "report", "one page with the tables and figures of other outputs"),
    "calibrate": ("models", "calibrated", "the column ood for any model, from a sample of speech"),
    "export": ("models", "onnx", "a model as an ONNX file, for use without raysers"),
    "demo": ("speech", "", "synthesize a few clips and annotate them, offline"),
}
_BAD_CONFIG = 2
_LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Command(Generic[T]):
    """A job with its command line; called with arguments it gives the exit code, see `cli.parse`.

    `run` is the job itself, of `flags`; its docstring is the description in `--help`.
    """

    run: Callable[[T], int]
    positional: str
    about: str = ""
    recipes: Path | None = None
    shown: Collection[str] = ()

    @property
    def flags(self) -> type[T]:
        """The dataclass of the job's flags."""
        found: type[T] = get_type_hints(self.run)["flags"]
        return found

    def __call__(
        self, argv: Sequence[str] | None = None, *, prog: str = "", output: str = ""
    ) -> int:
        """Parse and run; `output` is for when none is given."""
        from raysers.cli import as_plain, parse  # slower to import than the list of commands
        from raysers.errors import ConfigError
        from raysers.io import storage
        from raysers.run import quiet_environment, run_main

        def body() -> int:
            flags = parse(
                self.flags,
                argv,
                description=self.about or inspect.getdoc(self.run) or "",
                positional=self.positional,
                prog=prog,
                output=output,
                recipes=self.recipes,
                shown=self.shown,
            )
            if '"s3://' in json.dumps(as_plain(flags)):
                for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
                    storage.require_answer(name, os.environ.get(name, ""))
            try:
                return self.run(flags)
            except ModuleNotFoundError as error:
                raise ConfigError(_no_package(error)) from error

        quiet_environment()
        return run_main(body)


def command(positional: str, **more: Any) -> Callable[[Callable[[T], int]], Command[T]]:
    """Makes a function of flags the job of a command; words without a flag are `positional`'s."""
    return lambda run: Command(run, positional, **more)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` (default: the command line) names; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    name = args[0] if args else ""
    if name in ("-h", "--help", "--help-all", "help", ""):
        print(_help(), file=sys.stdout if name else sys.stderr)
        return 0 if name else _BAD_CONFIG
    if name in ("-V", "--version"):
        print(f"raysers {__version__}")
        return 0
    if name not in COMMANDS:
        return _refuse(f"{name!r} is no command of raysers: {_nearest(name)}")
    if argv is None:
        sys.argv[0] = "raysers"  # run.json records the command that repeats the run
    return _run(name, args[1:], prog=f"raysers {name}", output=COMMANDS[name][1])


def script(file: str) -> int:
    """Run the subcommand that a script of `jobs/` is named after; its output has no default."""
    return _run(Path(file).stem, sys.argv[1:], prog=os.path.basename(file), output="")


def _run(name: str, args: Sequence[str], *, prog: str, output: str) -> int:
    if sys.version_info[:2] < _LEAST_PYTHON:
        version = ".".join(map(str, sys.version_info[:2]))
        return _refuse(
            f"raysers needs Python 3.11 or newer, and {sys.executable} is {version}: "
            "install a newer one and raysers with it, in a clone by make setup PYTHON=python3.12"
        )
    try:
        run = find(name)
    except ModuleNotFoundError as error:
        return _refuse(_no_package(error))
    return run(args, prog=prog, output=output)


def _no_package(error: ModuleNotFoundError) -> str:
    # one without a name is another error in disguise, of a lazy import or of a worker
    if not error.name or error.name.startswith("raysers"):
        raise error
    return (
        f"{sys.executable} has no package {error.name}: use the Python that raysers is installed "
        "in (after make setup: .venv/bin/python), or install it with this one"
    )


def find(name: str) -> Callable[..., int]:
    """The subcommand, called with arguments; a `Command`, but for fuse, which has two."""
    module = importlib.import_module(f"raysers.commands.{COMMANDS[name][0]}")
    found: Callable[..., int] = getattr(module, name)
    return found


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _BAD_CONFIG


def _nearest(name: str) -> str:
    from raysers.cli import nearest

    if near := nearest(name, COMMANDS):
        return near
    if os.path.exists(name) or "://" in name:
        return f"did you mean raysers annotate {name}?"
    return f"give one of {', '.join(COMMANDS)}"


def _help() -> str:
    lines = "\n".join(f"  {name:<12}{about}" for name, (*_, about) in COMMANDS.items())
    return (
        "usage: raysers COMMAND ... [-h] [--version]\n\n"
        "Speech emotion recognition as batch jobs on Ray.\n\n"
        f"    raysers annotate recordings/ -o emotions/\n\n{lines}\n\n"
        "raysers COMMAND --help lists the flags of a command."
    )
