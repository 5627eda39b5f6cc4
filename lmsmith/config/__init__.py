"""Every setting of a run: frozen dataclasses, read from and written to TOML.

`settings.py` has the mechanism, `run.py` the whole, `model.py` what each model kind's config class
offers (the classes themselves are next to the models), `presets.py` the named starting points, and
`registry.py` the names that extensions can add to. Nothing here imports torch: `lmsmith --help`
reads all of it.
"""

from lmsmith.config.data import DataConfig, DataSource
from lmsmith.config.model import MODEL_KINDS, ModelConfig, NeuralConfig
from lmsmith.config.optim import OPTIMIZERS, SCHEDULES, OptimConfig, ScheduleConfig
from lmsmith.config.run import CHANGEABLE, LENGTH, RunConfig, settings
from lmsmith.config.settings import Setting, flatten, read_toml, setting
from lmsmith.config.train import TrainConfig

__all__ = [
    "CHANGEABLE",
    "LENGTH",
    "MODEL_KINDS",
    "OPTIMIZERS",
    "SCHEDULES",
    "DataConfig",
    "DataSource",
    "ModelConfig",
    "NeuralConfig",
    "OptimConfig",
    "RunConfig",
    "ScheduleConfig",
    "Setting",
    "TrainConfig",
    "flatten",
    "read_toml",
    "setting",
    "settings",
]
