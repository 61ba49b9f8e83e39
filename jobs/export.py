"""The command `raysers export` as a script, for `ray job submit`."""

import sys

from raysers.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
