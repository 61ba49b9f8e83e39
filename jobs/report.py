"""The command `raysers report` as a script, for `ray job submit`."""

import sys

from raysers.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
