"""Settings that are chosen if left open, and settings that the user gave and that stay."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.config import RunConfig, settings
from lmsmith.config.presets import NOTES, PRESETS, has_size, preset
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.batches.rows import Rows
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.models.gpt import GPT
from lmsmith.models.sizes import GPT_SIZES as SIZES
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train import choose
from lmsmith.train.choose import resolve
from lmsmith.train.describe import describe
from lmsmith.train.device import Machine
from lmsmith.train.request import asked

MACHINE = Machine(
    torch.device("cpu"), threads=2, matmul="default", dtype="float32", flops=1e11, reason="a test's"
)


@pytest.fixture(autouse=True)
def _step_time_follows_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_a_step(config: RunConfig, corpus: Corpus, machine: Machine) -> float:
        tokens = config.train.batch_size * config.model.context_length
        return config.model.train_flops_per_token() * tokens / (0.4 * machine.flops)

    monkeypatch.setattr(choose, "seconds_a_step", seconds_a_step)


def corpus_of(n: int) -> Corpus:
    """About n characters; a tenth of them is held out."""
    tokenizer = CharTokenizer.learn(["abcdefgh\n"], False)
    ids = tokenizer.encode("abcdefgh\n" * (n // 9))
    cut = int(0.9 * len(ids))
    return Corpus(
        ids[:cut], ids[cut:], tokenizer, Counts(cut, len(ids) - cut, len(ids) - cut, 0, 0, ())
    )


def resolved(
    changes: dict[str, Any], *, seconds: float = 60.0, n: int = 100_000, name: str = "modern"
) -> RunConfig:
    config, given = asked(["book.txt"], {"preset": name} | changes)
    return resolve(config, given, corpus_of(n), MACHINE, seconds)


def test_on_gpus_the_vocabulary_is_padded_and_each_rank_has_its_own_device() -> None:
    gpu = replace(MACHINE, device=torch.device("cuda:1"))
    config, given = asked(["book.txt"], {"train.steps": 10})
    for world, device in ((1, "cuda:1"), (2, "cuda")):
        found = resolve(config, given, corpus_of(100_000), gpu, 60.0, world)
        assert (found.train.device, found.model.padded_vocab_size) == (device, 128)
    config, given = asked(["book.txt"], {"train.steps": 10, "model.vocab_multiple": 2})
    assert resolve(config, given, corpus_of(100_000), gpu, 60.0).model.padded_vocab_size == 10


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).model.kind != "ngram"])
def test_every_setting_is_chosen(name: str) -> None:
    changes = {"train.steps": 100} if has_size(name) else {}
    n = 100_000
    config = resolved(changes, name=name, n=n)
    open_still = {"auto", 0}
    for setting in (
        "train.threads",
        "train.matmul",
        "train.dtype",
        "train.device",
        "train.eval_every",
        "train.steps",
    ):
        section, _, field = setting.rpartition(".")
        assert getattr(getattr(config, section), field) not in open_still, setting
    assert config.model.vocab_size == 9
    with torch.device("meta"):
        config.neural.build()
    again = resolve(config, dict(settings(type(config.model))).keys(), corpus_of(n), MACHINE, 1.0)
    assert again == config, "a resolved config does not change again"


@pytest.mark.parametrize("seconds", [1, 5, 60, 600, 6000, 1e6])
def test_more_time_gives_a_larger_model_that_takes_about_that_time(seconds: float) -> None:
    config = resolved({"train.max_epochs": 0.0}, seconds=seconds, n=2_000_000)
    flops = (
        config.model.train_flops_per_token() * config.train.batch_size * config.model.context_length
    )
    assert config.train.steps * flops / (0.4 * MACHINE.flops) == pytest.approx(seconds, rel=0.1)
    smaller = resolved({"train.max_epochs": 0.0}, seconds=seconds / 10, n=2_000_000)
    assert (
        GPT(smaller.model).n_parameters() <= GPT(config.model).n_parameters()
        if seconds < 6000
        else True
    )


def test_sizes_are_sorted_and_valid() -> None:
    assert [size.budget for size in SIZES] == sorted({size.budget for size in SIZES})
    assert SIZES[-1].budget == math.inf
    for size in SIZES:
        assert size.d_model % (2 * size.n_head) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model.n_layer": 5},
        {"model.d_model": 100},
        {"model.d_model": 127, "model.positions": "learned"},
        {"model.context_length": 77, "train.batch_size": 3},
        {"train.eval_every": 7, "train.log_every": 3, "train.save_every": 2},
        {"model.ngram_tables": (3,), "model.ngram_dropout": 0.4},
        {"optim.learning_rate": 1e-4, "schedule.shape": "cosine"},
        {"train.steps": 12},
    ],
)
def test_given_settings_stay(changes: dict[str, Any]) -> None:
    config = resolved(changes)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        assert getattr(getattr(config, section), field) == value
    assert config.model.d_model % config.model.n_head == 0


@pytest.mark.parametrize("n_head", [1, 3, 5, 7])
def test_the_heads_divide_the_chosen_width(n_head: int) -> None:
    found = resolved({"model.n_head": n_head})
    assert found.model.n_head == n_head
    assert found.model.d_model % (2 * n_head) == 0
    assert abs(found.model.d_model - resolved({}).model.d_model) <= n_head


@pytest.mark.parametrize(
    ("changes", "variable", "expected"),
    [
        ({}, "", "yes"),
        ({}, "2", "no"),
        ({"train.threads": 0}, "", "yes"),
        ({"train.threads": 2}, "", "no"),
        ({"train.threads": 2, "train.yield_cores": "yes"}, "", "yes"),
        ({"train.yield_cores": "no"}, "", "no"),
    ],
)
def test_given_threads_stay(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], variable: str, expected: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert resolved({"train.steps": 100} | changes).train.yield_cores == expected


def test_steps_come_from_steps_tokens_or_time() -> None:
    batch = {"train.batch_size": 4, "model.context_length": 16}
    assert resolved(batch | {"train.steps": 5}).train.steps == 5
    config = resolved(batch | {"train.tokens": 1000})
    assert (config.train.steps, config.train.tokens) == (15, 0)
    assert resolved(batch | {"train.tokens": 1}).train.steps == 1
    assert resolved(batch, seconds=20).train.steps == pytest.approx(
        2 * resolved(batch, seconds=10).train.steps, rel=0.01
    )
    with pytest.raises(ConfigError, match=r"Set more --minutes, a smaller model"):
        resolved(batch, seconds=1e-9)


def test_there_are_about_ten_evaluations_and_two_hundred_lines() -> None:
    train = resolved({"train.steps": 5000}).train
    assert (train.eval_every, train.log_every) == (500, 25)
    train = resolved({"train.steps": 3}).train
    assert (train.eval_every, train.log_every) == (1, 1)


@pytest.mark.parametrize("n", [9_000, 3_000_000])
def test_evaluations_take_a_small_share_of_a_short_run(n: int) -> None:
    config = resolved({}, seconds=30.0, n=n)
    forward = config.model.train_flops_per_token() / 3 / (0.4 * MACHINE.flops) * n / 10
    n_evaluations = config.train.steps // config.train.eval_every
    assert 3 <= n_evaluations <= 11
    assert n_evaluations * forward < 0.1 * 30 or n_evaluations == 3


def test_a_validation_split_that_takes_too_long_is_refused_with_a_size_that_fits() -> None:
    text = corpus_of(30_000)
    config, given = asked(["shards"], {})
    with pytest.raises(
        ConfigError, match=r"validation tokens once takes about [\d,]+ s on this"
    ) as caught:
        resolve(
            config,
            given,
            replace(text, validation=Shards([text.validation] * 30_000)),
            MACHINE,
            30.0,
        )
    advised = int(str(caught.value).partition("--data.validation_tokens ")[2].split()[0])
    assert 1e4 < advised < 3000 * 30_000
    resolve(
        config,
        given,
        replace(text, validation=Shards([text.validation] * (advised // 3000))),
        MACHINE,
        30.0,
    )


def test_a_short_text_gets_a_short_context() -> None:
    for n in (200, 1000, 5000):
        config = resolved({}, n=n)
        assert 8 <= config.model.context_length <= 0.9 * n / 4
    with pytest.raises(DataError, match="too few for a context length of 1,000"):
        resolved({"model.context_length": 1000}, n=1500)


def test_a_vocabulary_size_that_differs_from_the_tokenizers_is_refused() -> None:
    assert resolved({"model.vocab_size": 9}).model.vocab_size == 9
    assert resolved({"model.vocab_size": 0}).model.vocab_size == 9
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 10, but the tokenizer has 9 ids"):
        resolved({"model.vocab_size": 10})


@pytest.mark.parametrize("epochs", [0.1, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize(
    "more",
    [{}, {"train.initial_batch_size": 2, "train.batch_size": 12}, {"data.documents": "rows"}],
)
def test_epochs_are_converted_to_the_fewest_sufficient_steps(
    epochs: float, more: dict[str, Any]
) -> None:
    corpus = corpus_of(20_000)
    config, given = asked(
        ["book.txt"], {"train.epochs": epochs, "model.context_length": 24, **more}
    )
    config = resolve(config, given, corpus, MACHINE, 60.0)
    assert (config.train.tokens, config.train.epochs) == (0, 0)
    batches, steps = batches_of(config, corpus.train, corpus.tokenizer), config.train.steps
    if isinstance(batches, Rows):
        times = np.bincount(np.concatenate([batches.documents(step) for step in range(steps)]))
        assert times.min() == math.floor(epochs)
        assert times.max() == math.ceil(epochs)
        return
    seen = np.cumsum([batches.n_targets(step) for step in range(steps)])
    wanted = epochs * len(corpus.train)
    assert seen[-1] >= wanted
    assert steps == 1 or seen[-2] < wanted
    if (
        config.train.initial_batch_size
    ):  # warm-up takes half of the run, however its length was given
        assert (
            config.train.rows_of(steps // 4)
            < config.train.batch_size
            == config.train.rows_of(steps - 1)
        )


@pytest.mark.parametrize(
    ("changes", "name", "n_tokens", "rows"),
    [
        ({}, "modern", 3_999_999, 8192),
        ({}, "modern", 4_000_000, 32768),
        ({"model.d_model": 512, "model.n_head": 8}, "modern", 4_000_000, 8192),
        ({"model.ngram_table_size": 100}, "modern", 4_000_000, 100),
        ({"model.ngram_tables": ()}, "modern", 4_000_000, 8192),
        ({}, "llama", 4_000_000, 8192),
    ],
)
def test_long_texts_have_larger_ngram_tables(
    changes: dict[str, Any], name: str, n_tokens: int, rows: int
) -> None:
    config = preset(name).changed(changes, where="here").neural
    chosen, _ = config.default_size(1e13, n_tokens, list(changes))
    found = config.ngram_table_size
    if "model.ngram_table_size" not in changes:
        found = chosen.get("model.ngram_table_size", found)
    assert found == rows


@pytest.mark.parametrize(
    ("vocab_size", "budget", "n_tokens", "context_length", "batch_size"),
    [
        (65, 1e14, 1_000_000, 1024, 2),  # characters
        (257, 1e14, 1_000_000, 1024, 2),  # bytes
        (2048, 1e14, 1_000_000, 256, 8),
        (65, 1e13, 1_000_000, 256, 8),  # a short run
        (65, 1e14, 3_000, 512, 2),  # a short text
        (65, 2e16, 1_000_000, 1024, 16),  # 512 with 32 otherwise
        (65, 1e18, 1_000_000, 1024, 64),  # 1,024 already
    ],
)
def test_long_runs_on_characters_have_a_long_context(
    vocab_size: int, budget: float, n_tokens: int, context_length: int, batch_size: int
) -> None:
    config = preset("modern").changed({"model.vocab_size": vocab_size}, where="here").neural
    chosen, rows = config.default_size(budget, n_tokens, ())
    assert (chosen["model.context_length"], rows) == (context_length, batch_size)


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 9),
        ({"train.max_epochs": 2.0}, 2),
        ({"train.max_epochs": 0.0}, math.inf),
        ({"preset": "llama"}, math.inf),
    ],
)
def test_a_short_text_ends_a_run_before_its_minutes(changes: dict[str, Any], most: float) -> None:
    config = resolved({"train.minutes": 10.0} | changes, seconds=600)
    tokens = config.train.steps * config.train.batch_size * config.model.context_length
    n_epochs = tokens / 89_999
    assert n_epochs <= most
    assert n_epochs > (most - 0.1 if most < math.inf else 30)
    noted = any("--train.max_epochs 0" in note for note in notes_of(config))
    assert noted == (most < math.inf)


def notes_of(config: RunConfig) -> list[str]:
    return [
        line for line in describe(config, corpus_of(100_000), MACHINE) if line.startswith("note")
    ]


@pytest.mark.parametrize(
    ("changes", "n_epochs", "decay", "averaged"),
    [
        ({}, 3, 0.0, 0.0),
        ({}, 8, 0.1, 0.15),
        ({"optim.weight_decay": 0.0}, 8, 0.0, 0.15),
        ({"train.average_fraction": 0.0}, 8, 0.1, 0.0),
        ({"model.ngram_tables": ()}, 8, 0.1, 0.15),
        ({"preset": "llama"}, 8, 0.1, 0.0),  # its own weight decay
        ({"preset": "lstm"}, 8, 0.0, 0.0),
    ],
)
def test_texts_that_are_read_many_times_are_trained_with_weight_decay_and_averaging(
    changes: dict[str, Any], n_epochs: float, decay: float, averaged: float
) -> None:
    config = resolved({"train.epochs": n_epochs, "train.batch_size": 8} | changes)
    assert (config.optim.weight_decay, config.train.average_fraction) == (decay, averaged)


def test_epochs_do_not_depend_on_time() -> None:
    """The model has the size of a run whose length is given in steps, whatever the machine's
    speed.
    """
    for changes in ({"train.epochs": 1.0}, {"train.steps": 100}):
        assert resolved(changes, seconds=0.001).model == replace(
            resolved(changes, seconds=1e6).model,
            ngram_dropout=resolved(changes).model.ngram_dropout,
        )


def test_the_description_has_the_numbers_of_the_plan() -> None:
    config = resolved({"train.steps": 1000})
    text = "\n".join(describe(config, corpus_of(100_000), MACHINE))
    n_tokens = 1000 * config.train.batch_size * config.model.context_length
    assert f"{GPT(config.model).n_parameters():,} parameters" in text
    assert f"= {n_tokens:,} tokens ({n_tokens / 89_999:.1f} epochs)" in text
    assert "99,999 characters, vocabulary of 9; 10,000 held out for validation" in text
    assert "cpu, 2 threads, float32; 100 GFLOP/s in matrix products (a test's); " in text


@pytest.mark.parametrize(
    ("threads", "world", "words"),
    [
        (1, 1, "cpu, 1 thread, float32"),
        (2, 1, "cpu, 2 threads, float32"),
        (1, 2, "cpu, 2 processes of 1 thread each, float32"),
        (4, 2, "cpu, 2 processes of 4 threads each, float32"),
    ],
)
def test_the_description_has_processes_and_threads(threads: int, world: int, words: str) -> None:
    config = resolved({"train.steps": 1, "model.n_layer": 1, "model.n_head": 1, "model.d_model": 8})
    text = "\n".join(describe(config, corpus_of(100_000), replace(MACHINE, threads=threads), world))
    assert f"machine  {words}; " in text
    assert "1 layer, 1 head, width 8" in text
    assert "training 1 step of" in text


@pytest.mark.parametrize("world", [1, 3])
def test_short_rows_give_larger_batches(world: int) -> None:
    """With lines of nine characters, a batch has as many tokens as one of windows, unless the
    batch size is given.
    """
    config, given = asked(["book.txt"], {"train.steps": 5, "data.documents": "rows"})
    corpus = corpus_of(100_000)
    found = resolve(config, given, corpus, MACHINE, 60.0, world)
    windows = resolve(
        asked(["book.txt"], {"train.steps": 5})[0], given, corpus, MACHINE, 60.0, world
    ).train.batch_size
    tokens = batches_of(found, corpus.train, corpus.tokenizer).tokens_per_batch
    assert tokens == pytest.approx(windows * found.model.context_length, rel=0.05)
    assert found.train.batch_size % world == 0
    assert f"of {found.train.batch_size} documents of 9 tokens = " in "".join(
        describe(found, corpus, MACHINE)
    )
    config, given = asked(
        ["book.txt"], {"train.steps": 5, "data.documents": "rows", "train.batch_size": 6}
    )
    assert resolve(config, given, corpus, MACHINE, 60.0, world).train.batch_size == 6


def test_the_share_cut_from_rows_is_a_note() -> None:
    config = resolved({"train.steps": 5, "data.documents": "rows", "model.context_length": 6})
    assert describe(config, corpus_of(100_000), MACHINE)[-1].startswith(
        "note     33.3% of the tokens lie beyond"
    )


def test_a_given_size_is_kept() -> None:
    config = resolved({"model.size": 3, "train.steps": 5})
    assert (config.model.n_layer, config.model.d_model, config.train.batch_size) == (3, 192, 8)


@pytest.mark.parametrize("name", NOTES)
def test_a_presets_difference_from_its_paper_is_a_note(name: str) -> None:
    config = resolved({"train.steps": 5}, name=name)
    assert describe(config, corpus_of(100_000), MACHINE)[-1] == f"note     {NOTES[name]}"


def test_model_size_is_explained() -> None:
    config = resolved({"model.size": 2, "train.steps": 5})
    assert (
        "model.size 2 sets 2 layers, width 128 and heads of 64"
        in describe(config, corpus_of(100_000), MACHINE)[-1]
    )


@pytest.mark.parametrize(
    ("tokens", "world", "rows"),
    [(1000, 1, 10), (1049, 1, 10), (1051, 1, 11), (1000, 4, 8), (1001, 3, 9), (10, 4, 4)],
)
def test_batch_tokens_give_the_nearest_number_of_rows_that_all_ranks_can_share(
    tokens: int, world: int, rows: int
) -> None:
    changes = {"train.batch_tokens": tokens, "model.context_length": 100, "train.steps": 3}
    config, given = asked(["book.txt"], changes)
    found = resolve(config, given, corpus_of(100_000), MACHINE, 60.0, world)
    assert (found.train.batch_size, found.train.batch_tokens) == (rows, 0)


def test_batch_tokens_use_the_chosen_context_and_the_length_of_documents() -> None:
    found = resolved({"train.batch_tokens": 4096, "train.tokens": 10 * 4096})
    assert found.train.batch_size * found.model.context_length == 4096
    assert found.train.steps == 10
    changes = {
        "train.batch_tokens": 1000,
        "model.context_length": 100,
        "data.documents": "rows",
        "train.steps": 3,
    }
    assert resolved(changes).train.batch_size == 112  # lines of nine


def test_the_batch_on_the_command_line_overrides_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "config.toml"
    recipe.write_text(
        resolved({"train.steps": 3, "train.batch_size": 8}).to_toml(), encoding="utf-8"
    )

    def batch(changes: dict[str, Any]) -> int:
        config, given = asked(["book.txt", str(recipe)], changes)
        return resolve(config, given, corpus_of(100_000), MACHINE, 60.0).train.batch_size

    assert batch({}) == 8
    assert batch({"train.batch_tokens": 1280, "model.context_length": 64}) == 20
    recipe.write_text(
        'preset = "modern"\n[train]\nbatch_tokens = 1280\nsteps = 3', encoding="utf-8"
    )
    assert batch({"model.context_length": 64}) == 20
    assert batch({"train.batch_size": 4}) == 4
    with pytest.raises(ConfigError, match=r"both set the batch size: set only one"):
        batch({"train.batch_size": 4, "train.batch_tokens": 1280})


def test_batch_warmup_sees_the_requested_tokens() -> None:
    changes = {
        "train.batch_size": 32,
        "train.initial_batch_size": 8,
        "model.context_length": 16,
        "train.batch_warmup_fraction": 0.6,
    }
    found = resolved(changes | {"train.tokens": 100_000})
    assert sum(
        found.train.rows_of(step) for step in range(found.train.steps)
    ) * 16 == pytest.approx(100_000, rel=0.03)
    assert found.train.rows_of(0) == 8


@pytest.mark.parametrize(
    ("changes", "why", "world"),
    [
        ({"train.steps": 0, "train.minutes": 1.0}, "not --minutes", 1),
        ({"data.documents": "rows"}, "whose batches have one size", 1),
        ({"train.initial_batch_size": 64}, "is larger than train.batch_size = 32", 1),
        ({}, "cannot be divided evenly among 3 processes", 3),
    ],
)
def test_impossible_batch_warmup_is_refused(changes: dict[str, Any], why: str, world: int) -> None:
    asked_for = {
        "train.initial_batch_size": 8,
        "train.batch_size": 32,
        "model.context_length": 16,
        "train.steps": 9,
    } | changes
    config, given = asked(["book.txt"], {name: value for name, value in asked_for.items() if value})
    with pytest.raises(ConfigError, match=why):
        resolve(config, given, corpus_of(100_000), MACHINE, 60.0, world)


@pytest.mark.parametrize(
    ("device", "flops", "changes", "triton", "wanted", "why"),
    [
        (
            "cuda",
            4e14,
            {"train.steps": 200_000},
            True,
            "yes",
            "compiled: compiling takes about a minute, the run about",
        ),
        (
            "cuda",
            4e14,
            {"train.steps": 100},
            True,
            "no",
            "not compiled: compiling takes about a minute, the run about 1 s",
        ),
        ("cuda", 4e14, {"train.steps": 200_000}, False, "no", "needs a Transformer and Triton"),
        ("cuda", 4e14, {"train.minutes": 4.0}, True, "yes", "the run about 240 s"),
        ("cuda", 4e14, {"train.minutes": 2.0}, True, "no", "the run about 120 s"),
        (
            "cuda",
            4e14,
            {"train.minutes": 2.0, "train.compile": "yes"},
            True,
            "yes",
            "; compiled: ",
        ),
        (
            "cuda",
            4e14,
            {"train.minutes": 4.0, "train.compile": "no"},
            True,
            "no",
            "; not compiled: ",
        ),
        ("cpu", 1e11, {"train.steps": 200_000}, True, "no", "no gain on CPUs"),
    ],
)
def test_blocks_are_compiled_if_the_run_is_long_enough(
    device: str,
    flops: float,
    changes: dict[str, Any],
    triton: bool,
    wanted: str,
    why: str,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: triton)
    machine = replace(MACHINE, device=torch.device(device), flops=flops)
    config, given = asked(["book.txt"], {"preset": "babygpt"} | changes)
    corpus = corpus_of(1_000_000)
    config = resolve(config, given, corpus, machine, 60 * config.train.minutes or 300)
    assert config.train.compile == wanted
    assert why in describe(config, corpus, machine)[3]


@pytest.mark.parametrize(
    ("steps", "words"),
    [(1, "for only about 1 step in 0.5 minutes"), (2, "for only about 2 steps in 0.5 minutes")],
)
def test_too_little_time_is_a_note(steps: int, words: str) -> None:
    changes = {"train.steps": steps, "train.minutes": 0.5, "model.vocab_size": 100}
    config = preset("llama").changed(changes, where="here")
    assert words in describe(config, corpus_of(100_000), MACHINE)[-1]
