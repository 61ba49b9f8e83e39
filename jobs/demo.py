"""The command `raysers demo` as a script, for `ray job submit`."""

import sys

from raysers.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
