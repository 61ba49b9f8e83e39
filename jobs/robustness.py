"""The command `raysers robustness` as a script, for `ray job submit`."""

import sys

from raysers.commands.robustness import main

if __name__ == "__main__":
    sys.exit(main())
