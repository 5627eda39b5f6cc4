"""The config of a whole run: a model, an optimizer, a schedule, data and a length."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import tomli_w

from lmsmith.config.aliases import RENAMED, renamed
from lmsmith.config.data import DataConfig
from lmsmith.config.model import MODEL_KINDS, ModelConfig, NeuralConfig
from lmsmith.config.optim import OptimConfig, ScheduleConfig
from lmsmith.config.settings import Setting, nearest, parse, setting, settings_of
from lmsmith.config.train import TrainConfig
from lmsmith.errors import ConfigError


def _default_model() -> ModelConfig:
    return MODEL_KINDS.get("gpt")()


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `config.toml` in a run folder is this: all that is needed to repeat the run."""

    preset: str = setting("modern", "the named starting point that the other settings change")
    tokenizer: str = setting(
        "auto", "auto, byte, char, word, bpe:SIZE, gpt2, or a tokenizer folder"
    )
    model: ModelConfig = dataclasses.field(default_factory=_default_model)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        model = self.model
        if self.train.truncated_bptt and not model.recurrent:
            raise ConfigError(
                f"train.truncated_bptt carries the state of recurrent networks, and model.kind is "
                f"{model.kind}."
            )
        if model.recurrent and self.train.parallel == "fsdp":
            raise ConfigError(
                "train.parallel = 'fsdp' shards weights, but PyTorch's recurrent kernels need them "
                "whole: set it to ddp."
            )

    @property
    def neural(self) -> NeuralConfig:
        """The model's settings, of a kind that is trained by gradients."""
        assert isinstance(self.model, NeuralConfig), self.model.kind
        return self.model

    def changed(self, changes: Mapping[str, Any], *, where: str | Mapping[str, str]) -> Self:
        """A copy with dotted settings replaced: `{"model.n_layer": 6}`; text is parsed by type.

        All changes are made at once, so settings that only fit together can be changed together.
        Another `model.kind` starts from that kind's defaults. `where` names the source of the
        changes in errors ("the command line", a recipe's path), of all or of each by its name.
        Raises ConfigError.
        """
        places = {name: where if isinstance(where, str) else where[name] for name in changes}
        changes = renamed(changes, places)
        places = {RENAMED.get(name, name): place for name, place in places.items()}
        leaf = dict(settings_of(RunConfig))["model.kind"]
        kind = parse(leaf, changes.get("model.kind", self.model.kind), places.get("model.kind", ""))
        start = self.model if kind == self.model.kind else MODEL_KINDS.get(kind)()
        known = dict(settings(type(start)))
        sections: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            place = places[name]
            if name not in known:
                unknown = f"unknown setting {name!r} in {place}.{nearest(name, known)}"
                raise ConfigError(of_another_kind(name, kind, place) or unknown)
            section, _, key = name.rpartition(".")
            sections.setdefault(section, {})[key] = parse(known[name], value, place)
        replaced: dict[str, Any] = {"model": start, **sections.pop("", {})}
        for section, values in sections.items():
            old: Any = start if section == "model" else getattr(self, section)
            replaced[section] = dataclasses.replace(old, **values)
        return dataclasses.replace(self, **replaced)

    def to_dict(self) -> dict[str, Any]:
        """All settings as nested tables, with the words for zero: what `config.toml` holds."""
        leaves = dict(settings(type(self.model)))

        def shown(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
            return {
                key: shown(value, f"{prefix}{key}.")
                if isinstance(value, Mapping)
                else leaves[prefix + key].shown(value)
                for key, value in tree.items()
            }

        return shown(dataclasses.asdict(self))

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def settings(model: type[ModelConfig] | None = None) -> Iterator[tuple[str, Setting]]:
    """Every setting of a run by dotted name, in declaration order.

    `model`: the config class of the model kind (default: Transformers).
    """
    for name, leaf in settings_of(RunConfig):
        if name == "model.kind":
            yield from settings_of(model or MODEL_KINDS.get("gpt"), "model.")
        elif not name.startswith("model."):
            yield name, leaf


def of_another_kind(name: str, kind: str, where: str) -> str:
    """What to say about a setting that only other kinds of model have; empty if none has it."""
    others = [
        other for other in MODEL_KINDS.names() if name in dict(settings(MODEL_KINDS.get(other)))
    ]
    if not others or kind in others:
        return ""
    return (
        f"{name} in {where} is a setting of model.kind {' and '.join(others)}, but this model is "
        f"of kind {kind}: leave it out, or choose another --preset."
    )


LENGTH = ("train.steps", "train.minutes", "train.tokens", "train.epochs")
"""What gives a run's length. `resume` takes one of them, also for a finished run."""

CHANGEABLE = {
    *("train.micro_batch_size", "train.activation_checkpointing", "train.parallel"),
    *("train.device", "train.compile", "train.threads", "train.yield_cores"),
    *("train.save_every", "train.keep", "train.track", "train.on_spike", "train.spike_z"),
    *("train.eval_every", "train.log_every", "train.stop_at_val_loss"),
    *("train.tasks", "train.task_every", "train.task_limit", "train.task_data"),
    *("model.dropout", "model.attention_dropout", "model.ngram_dropout"),
    *(f"optim.{field.name}" for field in dataclasses.fields(OptimConfig) if field.name != "name"),
    *(f"schedule.{field.name}" for field in dataclasses.fields(ScheduleConfig)),
}
"""What a run may be resumed with, besides its length: speed, memory, rhythm, what is kept, and how
it learns from there on. What weights, optimizer state and data order depend on must stay."""
