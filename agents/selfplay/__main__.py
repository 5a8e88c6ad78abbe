"""`python -m agents.selfplay`."""

import sys

from agents.selfplay.loop import main

if __name__ == "__main__":
    sys.exit(main())
