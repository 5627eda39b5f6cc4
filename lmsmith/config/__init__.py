"""All settings of a run, as frozen dataclasses that are read from and written to TOML.

- `settings.py`: how a setting is declared, listed and parsed
- `run.py`: the config of a run; its sections are in `data.py`, `optim.py` and `train.py`
- `model.py`: base classes of the model configs, which are defined next to the models
- `presets.py`: named configurations
- `registry.py`: names that extensions can add to

Nothing here imports torch, so that `lmsmith --help` stays fast.
"""

from lmsmith.config.align import AlignConfig
from lmsmith.config.data import DataConfig, DataSource
from lmsmith.config.model import MODEL_KINDS, ModelConfig, NeuralConfig
from lmsmith.config.optim import OPTIMIZERS, SCHEDULES, OptimConfig, ScheduleConfig
from lmsmith.config.rl import REWARDS, RL_TASKS, RLConfig
from lmsmith.config.run import CHANGEABLE, LENGTH, RunConfig, settings
from lmsmith.config.settings import Setting, flatten, read_toml, setting
from lmsmith.config.train import OBJECTIVES, TrainConfig

__all__ = [
    "CHANGEABLE",
    "LENGTH",
    "MODEL_KINDS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "REWARDS",
    "RL_TASKS",
    "SCHEDULES",
    "AlignConfig",
    "DataConfig",
    "DataSource",
    "ModelConfig",
    "NeuralConfig",
    "OptimConfig",
    "RLConfig",
    "RunConfig",
    "ScheduleConfig",
    "Setting",
    "TrainConfig",
    "flatten",
    "read_toml",
    "setting",
    "settings",
]
