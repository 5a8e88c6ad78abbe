"""`python -m experts.collect`."""

from experts.collect.pipeline import main

if __name__ == "__main__":
    main()
