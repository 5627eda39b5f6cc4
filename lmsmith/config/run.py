"""The config of a run: model, optimizer, schedule, data and training settings."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import tomli_w

from lmsmith.config.aliases import RENAMED, renamed
from lmsmith.config.align import AlignConfig
from lmsmith.config.data import DataConfig
from lmsmith.config.lora import LoraConfig
from lmsmith.config.model import MODEL_KINDS, ModelConfig, NeuralConfig
from lmsmith.config.optim import OptimConfig, ScheduleConfig
from lmsmith.config.rl import RLConfig
from lmsmith.config.settings import Setting, nearest, parse, setting, settings_of
from lmsmith.config.train import TrainConfig
from lmsmith.errors import ConfigError


def _default_model() -> ModelConfig:
    return MODEL_KINDS.get("gpt")()


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run, as saved in its `config.toml`: everything needed to repeat it."""

    preset: str = setting("modern", "named configuration with the defaults of all other settings")
    tokenizer: str = setting(
        "auto",
        "tokenizer: byte, char, word, bpe:SIZE (learned from the text), gpt2, or a tokenizer "
        "folder; auto: char, byte or bpe, depending on the text",
    )
    model: ModelConfig = dataclasses.field(default_factory=_default_model)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    align: AlignConfig = dataclasses.field(default_factory=AlignConfig)
    rl: RLConfig = dataclasses.field(default_factory=RLConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        model = self.model
        if self.train.truncated_bptt and not model.recurrent:
            raise ConfigError(
                f"train.truncated_bptt needs a recurrent network, but model.kind is {model.kind}: "
                f"leave it out, or choose --preset lstm."
            )
        if self.lora.rank and (model.kind != "gpt" or self.train.engine == "reference"):
            raise ConfigError(
                f"lora.rank = {self.lora.rank} needs a Transformer trained with PyTorch, and this "
                f"is a model of kind {model.kind} with train.engine {self.train.engine}. Set it to "
                "none."
            )
        if model.recurrent and self.train.parallel == "fsdp":
            raise ConfigError(
                "train.parallel = 'fsdp' shards the weights, but PyTorch's recurrent kernels need "
                "the full weights: use --train.parallel ddp."
            )

    @property
    def neural(self) -> NeuralConfig:
        """The model's settings; asserts that the model is trained by gradient descent."""
        assert isinstance(self.model, NeuralConfig), self.model.kind
        return self.model

    def changed(self, changes: Mapping[str, Any], *, where: str | Mapping[str, str]) -> Self:
        """Returns a copy with dotted settings replaced: `{"model.n_layer": 6}`. Text is parsed.

        All changes are applied at once, so that settings which depend on each other can change
        together. A new `model.kind` starts from that kind's defaults. `where` names the source of
        the changes in errors ("the command line", a recipe's path): one for all, or one for each
        setting by name. Raises ConfigError.
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
        """Returns all settings as tables, as in `config.toml`, with `auto`, `none` or `all` for
        0.
        """
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
    """Yields every setting of a run by dotted name, in declaration order.

    `model`: the config class of the model kind (default: Transformers).
    """
    for name, leaf in settings_of(RunConfig):
        if name == "model.kind":
            yield from settings_of(model or MODEL_KINDS.get("gpt"), "model.")
        elif not name.startswith("model."):
            yield name, leaf


def of_another_kind(name: str, kind: str, where: str) -> str:
    """Returns the error message for a setting that only other model kinds have; empty if none has
    it.
    """
    others = [
        other for other in MODEL_KINDS.names() if name in dict(settings(MODEL_KINDS.get(other)))
    ]
    if not others or kind in others:
        return ""
    return (
        f"{name} in {where} is a setting of model.kind {' and '.join(others)}, but this model is "
        f"of kind {kind}: leave the setting out, or choose another --preset."
    )


LENGTH = ("train.steps", "train.minutes", "train.tokens", "train.epochs")
"""Settings of a run's length. `resume` accepts one of them, also for a finished run."""

CHANGEABLE = {
    *("train.micro_batch_size", "train.activation_checkpointing", "train.parallel"),
    *("train.device", "train.compile", "train.threads", "train.yield_cores"),
    *("train.save_every", "train.keep", "train.track", "train.on_spike", "train.spike_z"),
    *("train.eval_every", "train.log_every", "train.stop_at_val_loss", "train.max_epochs"),
    "train.average_fraction",
    *("train.tasks", "train.task_every", "train.task_limit", "train.task_data"),
    *("model.dropout", "model.attention_dropout", "model.ngram_dropout"),
    *(f"optim.{field.name}" for field in dataclasses.fields(OptimConfig) if field.name != "name"),
    *(f"schedule.{field.name}" for field in dataclasses.fields(ScheduleConfig)),
}
"""Settings that `resume` may change, besides the length: speed, memory, intervals, checkpoints to
keep, and hyperparameters of the remaining steps. Settings that determine the shapes of weights and
optimizer state, or the data order, cannot change."""
