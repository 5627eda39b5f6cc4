"""Runs lmsmith with a gradient a thousand times too large at step 7, and guards that need only four
steps of history.
"""

import lmsmith.train.guard
import lmsmith.train.step
from lmsmith.__main__ import main
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.train.replica import Replica

gradient = lmsmith.train.step.gradient


def leaping(replica: Replica, batches: AnyBatches, step: int) -> tuple[float, float]:
    loss, norm = gradient(replica, batches, step)
    return loss, norm * (1000 if step == 6 else 1)


if __name__ == "__main__":
    lmsmith.train.guard.LEAST = 4
    lmsmith.train.step.gradient = leaping
    main()
