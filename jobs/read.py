"""The command `raysers read` as a script, for `ray job submit`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the package beside it, if no other is
from raysers.commands import script

if __name__ == "__main__":
    sys.exit(script(__file__))
