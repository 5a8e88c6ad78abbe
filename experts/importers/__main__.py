"""`python -m experts.importers`."""

import sys

from experts.importers.command import main

if __name__ == "__main__":
    sys.exit(main())
