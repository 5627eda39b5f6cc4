"""lmsmith, whose second process is killed, the first time it is started, after STEP updates.

The last words of the command line: ... STEP
"""

import os
import signal
import sys
from typing import Any

from lmsmith.__main__ import main
from lmsmith.train.loop import Training

at = int(sys.argv.pop())
update = Training._update


def lost(self: Training, metrics: Any, progress: Any) -> None:
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.so_far.step == at + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, metrics, progress)


if __name__ == "__main__":
    Training._update = lost  # type: ignore[method-assign]
    main()
