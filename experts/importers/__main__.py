"""`python -m experts.importers`."""

from experts.importers.importers import main

if __name__ == "__main__":
    main()
