"""The command `raysers probe` as a script, for `ray job submit`."""

import sys

from raysers.commands.probe import main

if __name__ == "__main__":
    sys.exit(main())
