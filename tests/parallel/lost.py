"""lmsmith, whose second process is killed, the first time it comes that far, after STEP updates.

The last words of the command line: ... STEP
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lmsmith.__main__ import main
from lmsmith.train.loop import Training

at = int(sys.argv.pop())
update = Training._update


def lost(self: Training, metrics: Any, progress: Any) -> None:
    if os.environ["RANK"] == "1" and self.so_far.step == at + 1 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, metrics, progress)


if __name__ == "__main__":
    Training._update = lost  # type: ignore[method-assign]
    main()
