"""What lmsmith does, as Python calls. `lmsmith/__init__.py` exports them; the command line calls
them.

    training.py   train, resume, demo, report        run.py       Run
    models.py     evaluate, compare, import, export  lm.py        load, LM
    data.py       prepare                            progress.py  what is shown meanwhile

Everything raises subclasses of LmsmithError. Nothing is printed unless `progress` asks for it.
Nothing here imports torch before it is needed.
"""

from lmsmith.api.data import prepare
from lmsmith.api.lm import LM, SpecialTokens, load
from lmsmith.api.models import Comparison, Exported, compare, evaluate, export, import_model
from lmsmith.api.run import Run
from lmsmith.api.training import demo, report, resume, settings_from, train

__all__ = [
    "LM",
    "Comparison",
    "Exported",
    "Run",
    "SpecialTokens",
    "compare",
    "demo",
    "evaluate",
    "export",
    "import_model",
    "load",
    "prepare",
    "report",
    "resume",
    "settings_from",
    "train",
]
