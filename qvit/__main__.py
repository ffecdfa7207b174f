"""`python -m qvit` is the `qvit` command."""

from qvit.cli import main

if __name__ == "__main__":
    main()
