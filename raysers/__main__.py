"""`python -m raysers` is the command `raysers`."""

import sys

from raysers.commands import main

if __name__ == "__main__":
    sys.exit(main())
