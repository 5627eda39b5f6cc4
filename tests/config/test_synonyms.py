"""Names in other programs: each leads to an existing name and hides none."""

import re

import pytest

from lmsmith.cli import verbs
from lmsmith.config import MODEL_KINDS, settings, synonyms

FOUND = verbs().found
OPTIONS = {
    verb: [name for name in made._option_string_actions if name[:2] == "--"]
    for verb, made in FOUND.items()
}
EVERY_OPTION = {name for names in OPTIONS.values() for name in names} | {
    f"--{name}" for kind in MODEL_KINDS for name, _ in settings(MODEL_KINDS.get(kind))
}
# Named before they exist; each stands before one that does.
COMING = set[str]()


@pytest.mark.parametrize(
    ("verb", "word", "meant"),
    [
        ("train", "--layers", "--model.n_layer"),
        ("train", "--n_layers", "--model.n_layer"),
        ("train", "--num-hidden-layers", "--model.n_layer"),
        ("train", "--n-layer", "--model.n_layer"),
        ("train", "--hidden_size", "--model.d_model"),
        ("train", "--block_size", "--model.context_length"),
        ("train", "--max_steps", "--steps"),
        ("train", "--max-iters", "--steps"),
        ("train", "--num-epochs", "--epochs"),
        ("train", "--batch-size", "--train.batch_size"),
        ("train", "--device", "--train.device"),
        ("train", "--rope", "--model.positions rope"),
        ("train", "--fp16", "--train.dtype float16"),
        ("train", "--training.warmup", "--schedule.warmup_steps"),
        ("train", "--activation", "--model.feed_forward sets the activation of a Transformer"),
        ("train", "--data", "`lmsmith train book.txt`"),
        ("generate", "--max_new_tokens", "--max-tokens"),
        ("generate", "--tokens", "--max-tokens"),
        ("generate", "--temp", "--temperature"),
        ("generate", "--prompt", '`lmsmith generate RUN "TEXT"`'),
        ("eval", "--data", "--text"),
        ("tokenizer train", "--vocab", "--vocab-size"),
        ("data prepare", "--num_proc", "--workers"),
        ("export", "--format", "--to"),
        ("resume", "--num-threads", "--train.threads"),
        ("resume", "--layers", ""),
        ("train", "--frobnicate", ""),
    ],
)
def test_options(verb: str, word: str, meant: str) -> None:
    found = synonyms.option(word, OPTIONS[verb], verb)
    assert (meant in found) if meant else not found


@pytest.mark.parametrize("word", ["--lr", "--max_lr", "--learning_rate", "--val", "--valid"])
def test_the_first_existing_name_counts(word: str) -> None:
    new = "--validation" if word in ("--val", "--valid") else "--learning-rate"
    old = {
        "--validation": "--data.validation_fraction",
        "--learning-rate": "--optim.learning_rate",
    }[new]
    assert synonyms.option(word, [old]) == old
    assert synonyms.option(word, [old, new]) == new


def test_every_real_name_in_the_table_exists() -> None:
    for line in synonyms._OPTIONS:
        real = [line] if isinstance(line, str) else list(line)
        there = [name for name in real if f"--{name.partition(' ')[0]}" in EVERY_OPTION]
        assert there, line
        assert set(real) - set(there) <= COMING
    known = dict(settings())
    for name, _, value in (
        target.partition(" ") for names in synonyms._TARGETS.values() for target in names
    ):
        if value and name in known and known[name].choices:
            assert value in known[name].choices


def test_every_command_in_a_sentence_exists() -> None:
    said = [
        *synonyms._VERBS.values(),
        *(text for table in synonyms._SENTENCES.values() for text in table.values()),
    ]
    assert len(said) > 30
    for text in said:
        assert text.endswith(".")
        for command in re.findall("`lmsmith ([^`]*)`", text):
            words = command.split()
            assert words[0] in FOUND or " ".join(words[:2]) in FOUND or words[0].startswith("--"), (
                command
            )
        for option in re.findall(r"--[\w.-]+", text):
            assert option.rstrip(".") in EVERY_OPTION | {
                "--help",
                "--version",
                "--nproc-per-node",
            }, text


def test_no_synonym_of_a_command_is_a_command() -> None:
    real = {verb.split()[0] for verb in FOUND}
    assert not {word.replace("_", "-") for word in synonyms._MEANT} & (
        real - {"tokenizer", "data", "bench"}
    )
    for group, table in synonyms._SECOND_WORDS.items():
        for synonym, second in table.items():
            assert f"{group} {second}" in FOUND
            assert f"{group} {synonym}" not in FOUND


@pytest.mark.parametrize(
    "word",
    [
        "sample",
        "talk",
        "server",
        "finetune",
        "fine-tune",
        "Fine_Tune",
        "evaluate",
        "predict",
        "sft",
    ],
)
def test_verbs(word: str) -> None:
    assert "`lmsmith " in synonyms.verb(word)
    assert not synonyms.verb(word + "xyz")
