"""The `qvit` command, also as `python -m qvit`; light enough that Ctrl-C at the start is answered too."""

import sys


def main() -> None:
    """Entry point: import the command line and run it."""
    try:
        from qvit.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
