"""`python -m agents.finetune`."""

import sys

from agents.finetune.command import main

if __name__ == "__main__":
    sys.exit(main())
