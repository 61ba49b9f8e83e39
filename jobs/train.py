"""The command `raysers train` as a script, for `ray job submit`."""

import sys

from raysers.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
