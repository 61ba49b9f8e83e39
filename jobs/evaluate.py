"""The command `raysers evaluate` as a script, for `ray job submit`."""

import sys

from raysers.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
