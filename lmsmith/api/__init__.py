"""The Python API. `lmsmith/__init__.py` exports it, and the command line calls it.

    training.py   train, resume, demo, report        run.py       Run
    models.py     evaluate, import, export           lm.py        load, LM
    comparison.py compare                            tuning.py    tune, align
    reinforcement.py  rl                             data.py      prepare
    progress.py   progress bars and lines

All calls raise subclasses of LmsmithError. Nothing is printed unless `progress` asks for it. torch
is imported only when a call needs it.
"""

from lmsmith.api.comparison import Comparison, compare
from lmsmith.api.data import prepare
from lmsmith.api.generation import SpecialTokens
from lmsmith.api.lm import LM, load
from lmsmith.api.models import Exported, evaluate, export, import_model
from lmsmith.api.reinforcement import rl
from lmsmith.api.run import Run
from lmsmith.api.training import demo, report, resume, settings_from, train
from lmsmith.api.tuning import align, tune

__all__ = [
    "LM",
    "Comparison",
    "Exported",
    "Run",
    "SpecialTokens",
    "align",
    "compare",
    "demo",
    "evaluate",
    "export",
    "import_model",
    "load",
    "prepare",
    "report",
    "resume",
    "rl",
    "settings_from",
    "train",
    "tune",
]
