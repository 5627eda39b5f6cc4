"""Training with the reference engine, checked against training with PyTorch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmsmith.checkpoint import load_checkpoint
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.windows import Batch, Batches
from lmsmith.data.corpus import Corpus
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.targets import IGNORED
from lmsmith.train.by_hand import ReferenceEngine, check_memory, for_reference
from lmsmith.train.loop import Training
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

Make = Callable[..., Training]

TINY = {
    "model.n_layer": 2,
    "model.n_head": 3,
    "model.d_model": 15,
    "model.context_length": 16,
    "model.vocab_multiple": 8,
    "optim.learning_rate": 1e-2,
    "optim.embedding_learning_rate": 3e-2,
    "optim.clip_norm": 0.1,
    "schedule.warmup_steps": 3,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float64",
    "train.matmul": "default",
    "train.compile": "no",
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.steps": 10,
}


@pytest.fixture
def config(corpus: Corpus) -> RunConfig:
    vocab_size = {"model.vocab_size": corpus.tokenizer.vocab_size}
    return preset("gpt2").changed(TINY | vocab_size, where="a test")


def by(engine: str, config: RunConfig) -> tuple[GPT, Replica]:
    config = config.changed({"train.engine": engine}, where="a test")
    model = GPT(config.model).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=generator)
    return model, Replica(model, config)


class Masked(Batches):
    """Batches in which some positions have no target."""

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        batch = super().rows(step, start, end)
        targets = np.where(np.arange(self.T) < 3 + step, batch.targets, IGNORED)
        return Batch(batch.inputs, targets)

    def n_targets(self, step: int) -> int:
        return self.batch_size * (3 + step)


@pytest.mark.parametrize("micro", [0, 2])
@pytest.mark.parametrize("kind", [Batches, Masked])
def test_ten_steps_equal_pytorchs(
    config: RunConfig, corpus: Corpus, kind: type, micro: int
) -> None:
    """Covers loss, norm, clipping, schedule, decay, embedding learning rate, micro-batches, padded
    vocabulary.
    """
    config = config.changed({"train.micro_batch_size": micro}, where="a test")
    assert config.model.padded_vocab_size > config.model.vocab_size
    (ours, mine), (theirs, other) = by("reference", config), by("torch", config)
    assert isinstance(mine.optimizers, ReferenceEngine)
    batches = kind(corpus.train, context_length=16, batch_size=4, seed=1)
    clipped = 0
    for step in range(10):
        found, wanted = train_step(mine, batches, step, 10), train_step(other, batches, step, 10)
        assert found == pytest.approx(wanted, rel=1e-9)
        clipped += found["grad_norm"] > config.optim.clip_norm
    assert clipped
    weights = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, weights[name], rtol=0, atol=1e-8)
    state = other.optimizers.state()
    for name, value in mine.optimizers.state().items():
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=1e-6, atol=1e-12)


def test_a_resumed_run_reaches_bit_identical_weights(training: Make) -> None:
    changes = {
        "train.engine": "reference",
        "train.dtype": "float32",
        "train.save_every": 4,
        "train.keep": 9,
    }
    full = training(changes, run="full")
    wanted = full.go()
    first = training(changes, run="parts")
    first.go()
    (first.context.run / "checkpoints" / "step-00000010").rename(first.context.run / "removed")
    resumed = training(changes, run="parts")
    assert resumed.restore()
    assert resumed.state.step == 8
    summary = resumed.go()
    assert summary["best_val_loss"] == wanted["best_val_loss"]
    one, other = (load_checkpoint(run.context.run, 10).tensors for run in (full, resumed))
    for group in ("model", "optimizer"):
        assert one[group].keys() == other[group].keys()
        for name, tensor in one[group].items():
            assert torch.equal(tensor, other[group][name]), name


@pytest.mark.parametrize(("first", "then"), [("torch", "reference"), ("reference", "torch")])
def test_either_engine_resumes_a_run_of_the_other(training: Make, first: str, then: str) -> None:
    """Both engines save weights and AdamW's moments under the same names."""
    full = training({"train.engine": first, "train.save_every": 5, "train.keep": 9})
    full.go()
    weights = load_checkpoint(full.context.run, 10).tensors["model"]
    (full.context.run / "checkpoints" / "step-00000010").rename(full.context.run / "removed")
    other = training({"train.engine": then})
    assert other.restore()
    assert other.state.step == 5
    other.go()
    for name, tensor in load_checkpoint(other.context.run, 10).tensors["model"].items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-8)


def test_a_presets_dropout_is_turned_off_with_a_note_but_a_given_one_is_refused() -> None:
    asked = preset("babygpt").changed({"train.engine": "reference"}, where="a test")
    config, notes = for_reference(asked, given={"preset", "train.engine"})
    assert (config.model.dropout, config.model.attention_dropout) == (0, 0)
    assert (config.train.device, config.train.dtype) == ("cpu", "float32")
    assert notes == [
        "the reference engine has no dropout: model.dropout and model.attention_dropout of preset "
        "babygpt set to 0"
    ]
    with pytest.raises(ConfigError, match=r"model\.dropout = 0\.2.*Set it to 0"):
        for_reference(asked, given={"model.dropout"})
    without = asked.changed({"model.dropout": 0, "model.attention_dropout": 0}, where="a test")
    assert for_reference(without, given={"model.dropout"})[1] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.name": "muon"}, r"optim\.name = muon.*expected adamw"),
        ({"train.dtype": "bfloat16"}, r"train\.dtype = bfloat16.*float32 or float64"),
        ({"train.device": "cuda"}, r"train\.device = cuda.*expected cpu"),
        ({"train.activation_checkpointing": True}, r"train\.activation_checkpointing"),
        ({"train.compile": "yes"}, r"train\.compile"),
        ({"data.documents": "packed"}, r"data\.documents = packed"),
        ({"model.norm": "rmsnorm"}, r"model\.norm = rmsnorm.*--preset gpt2"),
        ({"model.n_kv_head": 4}, r"model\.n_kv_head = 4"),
        ({"model.d_ff": 100}, r"model\.d_ff = 100"),
        ({"model.norm_eps": 1e-6}, r"model\.norm_eps"),
        ({"model.tied_head": False}, r"model\.tied_head = False"),
        ({"model.d_head": 32}, r"model\.d_head = 32"),
        ({"model.attention_bias": "qkv"}, r"model\.attention_bias = qkv"),
        ({"preset": "modern"}, r"only GPT-2.*more\. Add --preset gpt2 or --preset babygpt"),
        ({"preset": "llama"}, r"only GPT-2"),
    ],
)
def test_unsupported_settings_are_refused(changes: dict[str, object], words: str) -> None:
    base = preset(str(changes.get("preset", "gpt2")))
    with pytest.raises(ConfigError, match=words):
        for_reference(base.changed(changes, where="a test"), given=set(changes))


def test_settings_without_effect_on_gpt2_are_accepted() -> None:
    changes = {
        "model.rope_base": 500.0,
        "model.d_ff": 4 * 768,
        "model.n_kv_head": 12,
        "model.d_head": 64,
        "train.dtype": "float64",
    }
    config, notes = for_reference(
        preset("gpt2").changed(changes, where="a test"), given=set(changes)
    )
    assert notes == []
    assert config.train.dtype == "float64"


def test_a_batch_too_large_for_memory_is_refused_before_allocation() -> None:
    config = preset("gpt2").changed(
        {"model.vocab_size": 50257, "train.batch_size": 4096}, where="a test"
    )
    with pytest.raises(ConfigError, match=r"4096 x 1024 tokens.*GB.*micro_batch_size"):
        check_memory(config)
    check_memory(
        config.changed({"train.micro_batch_size": 1, "model.context_length": 64}, where="a test")
    )
