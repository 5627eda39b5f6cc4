"""`python -m lmsmith` and the `lmsmith` command."""

import os
import sys
import time

STARTED = time.monotonic()  # `--minutes` counts from here

SPINS = 100_000
"""Number of times a PyTorch thread checks whether the other threads are done before it sleeps.

libgomp's default is 300,000, some milliseconds. While another program keeps a core busy, threads
that spin this long take processor time from the threads that they wait for, and a step can take a
hundred times as long.
"""


def spin_briefly() -> None:
    """Sets GOMP_SPINCOUNT, unless the user has set it or OMP_WAIT_POLICY. Has no effect after torch
    is imported.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def main() -> None:
    spin_briefly()
    from lmsmith.cli import run

    sys.exit(run(sys.argv[1:], started=STARTED))


if __name__ == "__main__":
    main()
