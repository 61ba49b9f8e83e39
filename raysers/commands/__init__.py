"""The command `raysers`: one subcommand a job, each imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from raysers import __version__
from raysers.arguments import nearest

#: By subcommand: where its output goes unless -o names another folder, and what it does.
COMMANDS = {
    "annotate": ("emotions", "emotion scores for every clip of an archive"),
    "read": ("", "the rows of an output, on the screen or as CSV or Excel"),
    "transcribe": ("transcripts", "a transcript of every clip"),
    "index": ("manifest", "a manifest of clips from folders, tar shards, tables or corpora"),
    "train": ("model", "fine-tune a speech backbone on labelled clips"),
    "tune": ("sweep", "search the flags of train for the best model"),
    "fuse": ("fusion", "train, or predict with, emotion from audio and text"),
    "evaluate": ("evaluation", "compare predictions with labels, with intervals"),
    "robustness": ("robustness", "how much scores change under noise, telephone, ..."),
    "probe": ("probe", "how much a model depends on linguistic content"),
    "synthesize": ("speech", "synthetic speech from texts"),
    "study": ("study", "grids of trainings and analyses, as in the paper"),
    "report": ("report", "one page with the tables and figures of other outputs"),
    "calibrate": ("calibrated", "the column ood for any model, from a sample of your speech"),
    "export": ("onnx", "a model as an ONNX file, for use without raysers"),
    "demo": ("", "synthesize a few clips and annotate them, offline"),
}
_BAD_CONFIG = 2
_LEAST_PYTHON = (3, 11)


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
    return _run(name, args[1:], prog=f"raysers {name}", output=COMMANDS[name][0])


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
        module = importlib.import_module(f"raysers.commands.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("raysers"):
            raise
        return _refuse(
            f"{sys.executable} has no package {error.name}: use the Python that raysers is "
            "installed in (after make setup: .venv/bin/python), or install it with this one"
        )
    code: int = module.main(args, prog=prog, output=output)
    return code


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _BAD_CONFIG


def _nearest(name: str) -> str:
    if near := nearest(name, COMMANDS):
        return near
    if os.path.exists(name) or "://" in name:
        return f"did you mean raysers annotate {name}?"
    return f"give one of {', '.join(COMMANDS)}"


def _help() -> str:
    lines = "\n".join(f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items())
    return (
        "usage: raysers COMMAND ... [-h] [--version]\n\n"
        "Speech emotion recognition as batch jobs on Ray.\n\n"
        f"    raysers annotate recordings/ -o emotions/\n\n{lines}\n\n"
        "raysers COMMAND --help lists the flags of a command."
    )
