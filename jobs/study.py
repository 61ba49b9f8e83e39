"""The command `raysers study` as a script, for `ray job submit`."""

import sys

from raysers.commands.study import main

if __name__ == "__main__":
    sys.exit(main())
