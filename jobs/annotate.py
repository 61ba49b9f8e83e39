"""The command `raysers annotate` as a script, for `ray job submit`."""

import sys

from raysers.commands.annotate import main

if __name__ == "__main__":
    sys.exit(main())
