"""`make gpu`: equality with the CPU, memory and speed on a GPU, as one table, in under 8 minutes.

python -m tests.gpu
python -m tests.gpu --device cpu --tiny   # tries the script itself
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

import torch
from rich.console import Console
from rich.table import Table

from raysers.run import quiet_environment
from tests.gpu.checks import CHECKS, FULL, TINY, Row

#: No check starts later than this.
_LAST_START_S = 420.0


def main() -> int:
    """Run all checks and print their table; 1 if one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU: nothing is checked", file=sys.stderr)
        return 2
    quiet_environment()
    began_s = time.monotonic()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    table = Table("check", "value", "expected", "holds", title=f"raysers on {name}")
    failed = False
    for check in CHECKS:
        rows = []
        if time.monotonic() - began_s > _LAST_START_S:
            rows.append(Row(check.__name__, "not started: out of time", "", False))
        try:
            rows += [] if rows else check(TINY if args.tiny else FULL, args.device)
        except Exception as error:  # the other checks still tell something
            traceback.print_exc()
            rows.append(Row(check.__name__, f"{type(error).__name__}: {error}"[:80], "", False))
        for row in rows:
            holds = {None: "", True: "yes", False: "NO"}[row.holds]
            table.add_row(row.what, row.value, row.expected, holds)
            failed |= row.holds is False
    Console(width=100).print(table)
    print(f"{time.monotonic() - began_s:.0f} s")
    return int(failed and not args.tiny)


if __name__ == "__main__":
    sys.exit(main())
