"""The command `raysers calibrate` as a script, for `ray job submit`."""

import sys

from raysers.commands.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
