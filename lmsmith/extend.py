"""The API for extensions: base classes, and functions that register names.

    from lmsmith.extend import register_optimizer

    register_optimizer("lion", lambda groups, config: Lion(groups, config.beta1, config.beta2))

A registered name works on the command line (`--optim.name lion`), in recipes and from Python. An
extension is loaded in one of three ways: Python imports its module; an installed package names it
as an entry point (groups `lmsmith.models`, `lmsmith.optimizers`, `lmsmith.schedules`,
`lmsmith.presets`, `lmsmith.corpora`, `lmsmith.tasks`, `lmsmith.rl_tasks`, `lmsmith.rewards`); or
the environment variable LMSMITH_EXTENSIONS lists modules or .py files, separated by commas.
`examples/` has six extensions; CONTRIBUTING.md explains them.

Hooks are passed to a run instead of registered: `lmsmith.train(..., hooks=[MyHook()])`.
"""

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from lmsmith.chat.rl.task import Problem, Reward, RLTask
from lmsmith.config import (
    MODEL_KINDS,
    OPTIMIZERS,
    REWARDS,
    RL_TASKS,
    SCHEDULES,
    ModelConfig,
    NeuralConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    setting,
    settings,
)
from lmsmith.config.optim import OptimizerFactory, Schedule
from lmsmith.config.presets import PRESETS
from lmsmith.config.registry import origin
from lmsmith.config.settings import check
from lmsmith.evaluate.tasks.registry import TASKS
from lmsmith.evaluate.tasks.task import (
    Answer,
    ChoiceTask,
    GenerateTask,
    Item,
    LastWordTask,
    Task,
)
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.text.corpora import CORPORA, Corpus, File, HubFiles
from lmsmith.train.hooks import Context, Hook

__all__ = [
    "Answer",
    "ChoiceTask",
    "Context",
    "Corpus",
    "File",
    "GenerateTask",
    "Hook",
    "HubFiles",
    "Item",
    "LanguageModel",
    "LastWordTask",
    "ModelConfig",
    "NeuralConfig",
    "NeuralModel",
    "OptimConfig",
    "Problem",
    "RLTask",
    "Reward",
    "RunConfig",
    "ScheduleConfig",
    "Task",
    "check",
    "register_corpus",
    "register_model",
    "register_optimizer",
    "register_preset",
    "register_reward",
    "register_rl_task",
    "register_schedule",
    "register_task",
    "setting",
]

Config = TypeVar("Config", bound=type[ModelConfig])


def register_model(config: Config, *, preset: Mapping[str, Any] | None = None) -> Config:
    """Registers a model kind under its `kind`, and a preset of the same name. Can be used as a
    decorator.

    `config`: a frozen dataclass derived from `NeuralConfig` with a default for `kind`. `preset`:
    further settings of the preset, by dotted name. Raises ConfigError if the name is taken, or if
    the preset has a setting that this kind does not have.
    """
    kind = str(config.kind)
    known = dict(settings(config))
    for name in preset or {}:
        check(name in known, f"preset of {kind!r}", name, "a setting of this kind")
    MODEL_KINDS.register(kind, config)
    PRESETS.register(kind, {"model.kind": kind, **(preset or {})}, owner=origin(config))
    return config


def register_optimizer(name: str, factory: OptimizerFactory) -> OptimizerFactory:
    """Registers an optimizer for `--optim.name`.

    `factory(groups, config)` returns a torch optimizer. `groups`: parameter groups with `params`,
    `lr` and `weight_decay`. `config`: the settings of `[optim]`. lmsmith sets each group's `lr`
    before every step and saves `optimizer.state[p]`, whose values must be tensors. Raises
    ConfigError if the name is taken.
    """
    return OPTIMIZERS.register(name, factory)


def register_schedule(name: str, schedule: Schedule) -> Schedule:
    """Registers a learning rate schedule for `--schedule.shape`.

    `schedule(step, n_steps, config)` returns the learning rate as a share of its peak. Steps count
    from 0, the end of warm-up. The result must depend on the arguments alone. Raises ConfigError if
    the name is taken.
    """
    return SCHEDULES.register(name, schedule)


def register_preset(name: str, changes: Mapping[str, Any]) -> None:
    """Registers a preset for `--preset`. `changes`: its settings, by dotted name.

    Raises ConfigError if the name is taken or a setting is not valid.
    """
    RunConfig().changed(changes, where=f"preset {name}")
    PRESETS.register(name, dict(changes), owner=_caller())


def register_corpus(corpus: Corpus) -> Corpus:
    """Registers a corpus, whose name can then be used as a SOURCE. Raises ConfigError if the name
    is taken.
    """
    return CORPORA.register(corpus.name.lower(), corpus, owner=_caller())


def register_task(task: Task) -> Task:
    """Registers a benchmark task under its name, for `lmsmith eval --tasks`.

    `task`: an instance of a subclass of ChoiceTask, LastWordTask or GenerateTask. Raises
    ConfigError if the name is taken.
    """
    return TASKS.register(task.name, task, owner=origin(type(task)))


def register_rl_task(task: RLTask) -> RLTask:
    """Registers a task of reinforcement learning under its name, for `lmsmith rl --task`.

    `task`: an instance of a subclass of RLTask. Raises ConfigError if the name is taken.
    """
    registered: RLTask = RL_TASKS.register(task.name, task, owner=origin(type(task)))
    return registered


def register_reward(name: str, reward: Reward) -> Reward:
    """Registers a reward for `--rl.rewards`.

    `reward(problem, answer)` returns a finite number, the same for the same arguments. `answer` is
    the assistant's text. Raises ConfigError if the name is taken.
    """
    registered: Reward = REWARDS.register(name, reward)
    return registered


def _caller() -> str:
    """Returns the module that calls the public function above, and so owns the name that it
    registers.
    """
    return str(sys._getframe(2).f_globals.get("__name__"))
