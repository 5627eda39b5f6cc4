"""Runs lmsmith and kills its second process once, after STEP steps. Command line: ... STEP"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lmsmith.train.loop
from lmsmith.__main__ import main
from lmsmith.train.step import train_step

at = int(sys.argv.pop())


def lost(replica: Any, batches: Any, step: int, *rest: Any) -> dict[str, float]:
    if os.environ["RANK"] == "1" and step == at + 1 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(replica, batches, step, *rest)


if __name__ == "__main__":
    lmsmith.train.loop.train_step = lost
    main()
