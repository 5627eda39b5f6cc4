"""`python -m lmsmith` and the `lmsmith` command."""

import os
import sys
import time

STARTED = time.monotonic()  # `--minutes` counts from here

SPINS = 100_000
"""How often a thread of PyTorch looks whether the others are done before it sleeps.

libgomp's own number is 300,000, some milliseconds. Beside another program that keeps a core busy,
threads then spin in the time that the others need: a step takes up to a hundred times as long.
"""


def spin_briefly() -> None:
    """Sets GOMP_SPINCOUNT, unless the user has set how threads wait. Has no effect once torch is
    loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def main() -> None:
    spin_briefly()
    from lmsmith.cli import run

    sys.exit(run(sys.argv[1:], started=STARTED))


if __name__ == "__main__":
    main()
