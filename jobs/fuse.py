"""The command `raysers fuse` as a script, for `ray job submit`."""

import sys

from raysers.commands.fuse import main

if __name__ == "__main__":
    sys.exit(main())
