"""The command `raysers tune` as a script, for `ray job submit`."""

import sys

from raysers.commands.tune import main

if __name__ == "__main__":
    sys.exit(main())
