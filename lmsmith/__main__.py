"""`python -m lmsmith` and the `lmsmith` command."""

import sys
import time

STARTED = time.monotonic()  # `--minutes` counts from here


def main() -> None:
    from lmsmith.cli import run

    sys.exit(run(sys.argv[1:], started=STARTED))


if __name__ == "__main__":
    main()
