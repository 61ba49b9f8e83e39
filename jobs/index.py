"""The command `raysers index` as a script, for `ray job submit`."""

import sys

from raysers.commands.index import main

if __name__ == "__main__":
    sys.exit(main())
