"""The command `raysers transcribe` as a script, for `ray job submit`."""

import sys

from raysers.commands.transcribe import main

if __name__ == "__main__":
    sys.exit(main())
