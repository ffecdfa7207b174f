"""The `qvit` command, also as `python -m qvit`; light enough that Ctrl-C at the start is answered too."""

import os
import sys

# How long an OpenMP thread spins before it sleeps, set before torch loads the library. libgomp's default of 300,000
# turns deadly where another process wants the cores: a W4A4 ViT-Tiny took 17.6 s an image beside two busy processes
# instead of 0.03. With 10,000 it took 1.2 s, and on a quiet machine no longer than before (21.5 ms against 21.8);
# sleeping at once (OMP_WAIT_POLICY=passive) would cost 125 ms there.
_SPIN = "10000"


def limit_spinning() -> None:
    """Have OpenMP's threads sleep soon, unless the environment says otherwise; call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)


def main() -> None:
    """Entry point: import the command line and run it."""
    limit_spinning()
    try:
        from qvit.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
