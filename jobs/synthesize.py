"""The command `raysers synthesize` as a script, for `ray job submit`."""

import sys

from raysers.commands.synthesize import main

if __name__ == "__main__":
    sys.exit(main())
