"""`python -m experts.collect`."""

import sys

from experts.collect.command import main

if __name__ == "__main__":
    sys.exit(main())
