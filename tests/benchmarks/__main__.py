"""Run benches, print a JSON line per measurement on stdout and a table on stderr.

python -m tests.benchmarks                          every bench, small: minutes
python -m tests.benchmarks feed --scale full        one bench, at the scale of the targets
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.table import Table

from tests.benchmarks import corpus
from tests.benchmarks.bends import bends
from tests.benchmarks.coverage import coverage
from tests.benchmarks.end_to_end import end_to_end
from tests.benchmarks.feed import feed
from tests.benchmarks.fuse import fuse
from tests.benchmarks.laptop import steady, whole, windows
from tests.benchmarks.layout import layout
from tests.benchmarks.measure import SCALES, Line, Scale, machine, rounded
from tests.benchmarks.onnx_runtime import onnx_runtime
from tests.benchmarks.padding import padding
from tests.benchmarks.planning import planning
from tests.benchmarks.robustness import robustness
from tests.benchmarks.rows import rows
from tests.benchmarks.soak import soak
from tests.benchmarks.store import store
from tests.benchmarks.training import training

BENCHES: dict[str, Callable[[Scale], Iterator[Line]]] = {
    "planning": planning,
    "padding": padding,
    "feed": feed,
    "store": store,
    "soak": soak,
    "whole": whole,
    "steady": steady,
    "windows": windows,
    "end_to_end": end_to_end,
    "onnx_runtime": onnx_runtime,
    "layout": layout,
    "training": training,
    "robustness": robustness,
    "fuse": fuse,
    "rows": rows,
    "bends": bends,
    "coverage": coverage,
}
#: Benches that need no real speech.
_SYNTHETIC = ("planning", "rows", "bends", "coverage", "soak")


def main() -> int:
    """Run what the command line asks for; figures below target are reported, never an error."""
    args = _arguments()
    scale = SCALES[args.scale]
    given = {"clips": args.clips, "repeats": args.repeats}
    scale = replace(scale, **{name: value for name, value in given.items() if value})
    lines = []
    for line in _lines(args.names or list(BENCHES), scale):
        lines.append(rounded(line))
        print(json.dumps(lines[-1]), flush=True)
    _print_table(lines)
    return 0


def _lines(names: list[str], scale: Scale) -> Iterator[Line]:
    yield machine()
    for name in names:
        if name not in _SYNTHETIC and not corpus.EMODB.is_dir():
            yield {"bench": name, "skipped": f"real speech is not on this machine: {corpus.EMODB}"}
        else:
            yield from BENCHES[name](scale)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--clips", type=int, help="EmoDB clips of the end-to-end bench")
    parser.add_argument("--repeats", type=int, help="turns per side; medians are reported")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHES):
        parser.error(f"no bench {', '.join(sorted(unknown))}: choose from {', '.join(BENCHES)}")
    return args


def _print_table(lines: list[Line]) -> None:
    """What was compared, the ratio, its target."""
    table = Table(box=None, pad_edge=False)
    for name in ("bench", "what", "speed (x real time)", "ratio", "target"):
        justify: Literal["left", "right"] = "left" if name in ("bench", "what") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for line in lines[1:]:
        speed = line.get("x_real_time", line.get("ours_x_real_time", ""))
        if "steps_per_s" in line:
            speed = f"{line['steps_per_s']} steps/s"
        ratio = line.get("ratio", "")
        style = {True: "green", False: "red", None: None}[line.get("reached")]
        target = line.get("target", "")
        table.add_row(line["bench"], _what(line), f"{speed}", f"{ratio}", f"{target}", style=style)
    Console(file=sys.stderr, width=120, highlight=False).print(table)


def _what(line: Line) -> str:
    words = (
        "skipped", "model", "side", "against", "audio", "workers", "placement", "lengths", "layout",
        "max_padded_s", "measure", "rows", "objects", "files", "mistake",
    )  # fmt: skip
    return ", ".join(f"{line[w]}" for w in words if w in line)


if __name__ == "__main__":
    sys.exit(main())
