"""The command `raysers`: one subcommand a job, each imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from raysers import __version__

#: By subcommand: where its output goes unless -o names another folder, and what it does.
COMMANDS = {
    "annotate": ("emotions", "emotion scores for every clip of an archive"),
    "transcribe": ("transcripts", "what is said in every clip"),
    "index": ("manifest", "a manifest of clips from folders, tar shards, tables or corpora"),
    "train": ("model", "fine-tune a speech backbone on labelled clips"),
    "tune": ("sweep", "search the flags of train for the best model"),
    "fuse": ("fusion", "train, or predict with, emotion from audio and text"),
    "evaluate": ("evaluation", "compare predictions with labels, with intervals"),
    "robustness": ("robustness", "how much scores change under noise, telephone, ..."),
    "probe": ("probe", "how much a model reacts to the words"),
    "synthesize": ("speech", "synthetic speech from texts"),
    "study": ("study", "grids of trainings and analyses, as in the paper"),
    "report": ("report", "one page with the tables and figures of other outputs"),
    "calibrate": ("calibrated", "the column ood for any model, from a sample of your speech"),
    "export": ("onnx", "a model as an ONNX file, for use without raysers"),
    "demo": ("", "synthesize a few clips and annotate them, offline"),
}
_EXAMPLE = "raysers annotate recordings/ -o emotions/"
_BAD_CONFIG = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` (default: the command line) names; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    name = args[0] if args else ""
    if name in ("-h", "--help", "help", ""):
        print(_help(), file=sys.stdout if name else sys.stderr)
        return 0 if name else _BAD_CONFIG
    if name in ("-V", "--version"):
        print(f"raysers {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(COMMANDS)}"
        print(f"error: {name!r} is no command of raysers: {hint}", file=sys.stderr)
        return _BAD_CONFIG
    if argv is None:
        sys.argv[0] = "raysers"  # run.json says how to repeat the run
    module = importlib.import_module(f"raysers.commands.{name}")
    code: int = module.main(args[1:], prog=f"raysers {name}", output=COMMANDS[name][0])
    return code


def _help() -> str:
    lines = [f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: raysers COMMAND ... [-h] [--version]",
            "",
            "Speech emotion recognition as batch jobs on Ray.",
            "",
            f"    {_EXAMPLE}",
            "",
            *lines,
            "",
            "raysers COMMAND --help lists the flags of a command.",
        )
    )
