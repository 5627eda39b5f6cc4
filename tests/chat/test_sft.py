"""Supervised fine-tuning: transformers gives the same loss and gradients, and runs resume exactly."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import MACHINE, QUIET, SHORT, make_base, write_chats

import lmsmith
from lmsmith.chat.prepare import gather, own_speaker, prepare, speaker_of, with_rows
from lmsmith.chat.sft import masks, tune
from lmsmith.checkpoint import load_model
from lmsmith.config import DataConfig, RunConfig
from lmsmith.data.batches.packing import batches_of
from lmsmith.errors import CheckpointError, ConfigError, DataError, UsageError
from lmsmith.evaluate.likelihood import score_ids
from lmsmith.interop.architectures import architecture_for
from lmsmith.interop.exporting import export_model
from lmsmith.run_folder import load_for_use, open_run, run_exposure, score_validation
from lmsmith.train.replica import Replica
from lmsmith.train.start import resume, train
from lmsmith.train.step import gradient


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run base, and chats.jsonl."""
    folder = tmp_path_factory.mktemp("sft")
    make_base(folder)
    write_chats(folder / "chats.jsonl")
    return folder


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    tuned_on(place, "tuned")
    return place / "tuned"


def tuned_on(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    return tune(
        place / "base",
        [str(place / "chats.jsonl")],
        SHORT | changes,
        out=place / name,
        console=QUIET,
    )[1]


def transformers_model(config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = architecture_for(config)
    settings = architecture.write_settings(config)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**settings), attn_implementation="eager"
    )
    model.load_state_dict(architecture.to_theirs(config, tensors), strict=False)
    return model.double()


def test_loss_and_gradients_equal_those_of_transformers(tuned: Path) -> None:
    """Each conversation alone, with labels -100 where nothing is learned."""
    config, corpus = open_run(tuned)
    config = config.changed({"train.dtype": "float64", "train.batch_size": 4}, where="test")
    tensors = {n: t.double() for n, t in load_model(tuned / "model")[0].items()}
    model = config.neural.build().double()
    model.load_state_dict(tensors)
    replica, batches = Replica(model, config), batches_of(config, corpus.train, corpus.tokenizer)
    loss, _ = gradient(replica, batches, 3)
    ours = {name: p.grad for name, p in model.named_parameters()}

    theirs = transformers_model(config.model, tensors)
    some, total = corpus.train, 0.0
    for member in batches.members(3):
        part = slice(int(some.starts[member]), int(some.starts[member + 1]))
        ids = torch.from_numpy(np.asarray(some.ids[part], np.int64))[None]
        labels = ids.where(torch.from_numpy(np.array(some.learned[part])), -100)
        out = theirs(ids, labels=labels)
        summed = out.loss * int((labels[:, 1:] != -100).sum())
        (summed / batches.n_targets(3)).backward()
        total += summed.item()
    assert loss == pytest.approx(
        total / batches.n_targets(3), rel=1e-6
    )  # they normalize in float32
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    wanted = architecture_for(config.model).to_ours(config.model, grads, tuned)
    assert set(wanted) == set(ours)
    for name, grad in wanted.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-5, atol=1e-7)


def test_held_out_loss_counts_the_answers_alone(tuned: Path) -> None:
    _config, corpus = open_run(tuned)
    model, _, _ = load_for_use(tuned)
    nats, n = 0.0, 0
    some = corpus.validation
    for start, end in zip(some.starts[:-1], some.starts[1:], strict=True):
        ids = torch.from_numpy(np.asarray(some.ids[start:end], np.int64))[None]
        learned = torch.from_numpy(np.asarray(some.learned[start + 1 : end]))
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids)[0, :-1].double(), -1)  # type: ignore[operator]
        nats -= float(log_p.gather(1, ids[0, 1:, None])[:, 0][learned].sum())
        n += int(learned.sum())
    score = score_validation(tuned, model, stride=None)
    assert score.n_tokens == n == corpus.counts.n_val_tokens
    assert score.nats_per_token == pytest.approx(nats / n, rel=1e-6)
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["best_val_loss"] == pytest.approx(nats / n, rel=1e-6)
    answers = "".join(
        text
        for _, parts in masks(tuned, [str(tuned.parent / "chats.jsonl")])
        for text, learned in parts
        if learned
    )
    assert score.n_bytes < len(answers.replace("<|end|>", ""))
    half = sum(score_ids(model, some, n_bytes=1, share=(rank, 2)).nats for rank in range(2))
    assert half == pytest.approx(nats, rel=1e-6)


def test_the_run_has_template_tokens_and_end_ids(tuned: Path, place: Path) -> None:
    speaker = own_speaker(tuned)
    assert speaker.added == ()
    content = json.loads((tuned / "model" / "config.json").read_text())["config"]
    end = speaker.tokenizer.special_tokens["<|end|>"]  # type: ignore[attr-defined]
    assert content["ends"] == [end]
    assert content["model"]["vocab_size"] == 261
    assert speaker.template.names.get("bos_token", "") == ""  # a text of one document has none
    with pytest.raises(UsageError, match="has no chat template"):
        own_speaker(place / "base")


def test_new_rows_are_the_mean_and_old_ones_stay(place: Path) -> None:
    tensors, _ = load_model(place / "base" / "model")
    before = open_run(place / "base")[0].neural
    after = dataclasses.replace(before, vocab_size=before.vocab_size + 2)
    V = before.vocab_size
    found = with_rows(tensors, before, after, [V, V + 1], np.arange(V))
    for name, old in tensors.items():
        if found[name].shape != old.shape:
            assert torch.equal(found[name][:V], old)
            torch.testing.assert_close(found[name][V], old.mean(0))
        else:
            assert torch.equal(found[name], old), name
    assert found["token_embedding.weight"].shape == (V + 2, 16)
    after.build().load_state_dict(found)


@pytest.mark.parametrize("left", [0, 5])
def test_resuming_gives_the_same_bits_without_the_base(
    place: Path, tuned: Path, left: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    if not left:  # as before the first save
        config, _ = open_run(tuned)
        (tmp_path / "start").mkdir()
        base = config.changed({"model.vocab_size": 256}, where="test")
        gather(base, tmp_path / "start", QUIET)
        shutil.rmtree(run / "model")
        shutil.copytree(tmp_path / "start" / "model", run / "model")
    else:  # damaged, but the checkpoint has everything
        (run / "model" / "model.safetensors").write_bytes(b"")
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > left:
            shutil.rmtree(checkpoint)
    assert resume(run, console=QUIET)["resumed_from_step"] == (left or None)
    for name in ("model.safetensors", "config.json", "huggingface.json", "tokenizer.json"):
        assert (run / "model" / name).read_bytes() == (tuned / "model" / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(place: Path, tmp_path: Path) -> None:
    long = SHORT | {"train.steps": 400, "train.save_every": 20, "train.keep": 2}
    program = (
        "import sys, json; from pathlib import Path; from rich.console import Console\n"
        "from lmsmith.chat.sft import tune\n"
        "tune(Path(sys.argv[1]), [sys.argv[2]], json.loads(sys.argv[3]), out=Path(sys.argv[4]), console=Console(quiet=True))"
    )
    words = [
        sys.executable,
        "-c",
        program,
        str(place / "base"),
        str(place / "chats.jsonl"),
        json.dumps(long),
    ]
    subprocess.run([*words, str(tmp_path / "alone")], check=True)
    process = subprocess.Popen([*words, str(tmp_path / "killed")])
    while not list(tmp_path.glob("killed/checkpoints/step-0000004*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    resume(tmp_path / "killed", console=QUIET)
    killed, alone = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("killed", "alone")
    )
    assert killed == alone


def test_export_has_the_template_and_transformers_the_same_ids(tuned: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from lmsmith.chat.masks import prompt_ids

    export_model(tuned, tmp_path / "hf", to="hf")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    messages = [{"role": "user", "content": "The cat"}]
    speaker = own_speaker(tuned)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True) == prompt_ids(
        messages, speaker.template, speaker.tokenizer
    )
    assert theirs.eos_token == "<|end|>"
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == theirs.convert_tokens_to_ids("<|end|>")


def test_other_model_kinds_and_tokenizers_learn_conversations(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 12)
    for preset, tokenizer in (("llama", "char"), ("lstm", "word")):
        folder = tmp_path / preset
        folder.mkdir()
        base = (
            make_base(folder, tokenizer=tokenizer) if preset == "llama" else rnn(folder, tokenizer)
        )
        found, summary = tune(
            base, [str(tmp_path / "chats.jsonl")], SHORT, out=folder / "run", console=QUIET
        )
        assert math.isfinite(summary["best_val_loss"])
        assert own_speaker(found).tokenizer.kind == "extended"
        _again, summary = tune(
            found, [str(tmp_path / "chats.jsonl")], SHORT, out=folder / "again", console=QUIET
        )
        assert summary["vocab_size"] == open_run(found)[0].model.vocab_size


def rnn(folder: Path, tokenizer: str) -> Path:
    text = folder / "book.txt"
    text.write_text("The cat saw x.\nA bird hid y.\n" * 200)
    settings = SHORT | {
        "preset": "lstm",
        "tokenizer": tokenizer,
        "model.d_model": 16,
        "model.context_length": 64,
    }
    return train([str(text)], settings, out=folder / "base", console=QUIET)[0]


def test_lengths_batches_and_exposure(place: Path) -> None:
    changes = {
        name: value
        for name, value in SHORT.items()
        if name not in ("train.steps", "train.batch_size")
    }
    _, summary = tune(
        place / "base", [str(place / "chats.jsonl")], changes, out=place / "default", console=QUIET
    )
    config, corpus = open_run(place / "default")
    batches = batches_of(config, corpus.train, corpus.tokenizer)
    assert summary["steps"] == math.ceil(3 * batches.n_batches)
    _, ((_, seen),) = run_exposure(place / "default")
    assert seen.n_epochs >= 3
    assert set(np.flatnonzero(seen.times)) <= {0, 3, 4}


def test_the_rate_counts_all_tokens_that_the_model_reads(tuned: Path) -> None:
    config, corpus = open_run(tuned)
    batches = batches_of(config, corpus.train, corpus.tokenizer)
    lengths = np.diff(corpus.train.starts) - 1  # without the last id, which is only a target
    members = [member for step in range(config.train.steps) for member in batches.members(step)]
    summary = json.loads((tuned / "summary.json").read_text("utf-8"))
    assert summary["tokens_read"] == lengths[members].sum()
    assert summary["tokens_seen"] < summary["tokens_read"]
    assert summary["tokens_per_second"] == pytest.approx(
        summary["tokens_read"] / summary["train_seconds"]
    )
    last = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line for line in last if line["kind"] == "train"][-1]["tokens_read"] == lengths[
        members
    ].sum()


def test_long_conversations_are_cut_and_counted(place: Path) -> None:

    rows = [("a" * 30, "b" * 90), ("a" * 90, "b"), ("a", "b"), ("c", "d")]
    path = place / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in rows))
    write_chats(place / "held.jsonl", 3)
    speaker = speaker_of(place / "base" / "model", "", 256)
    data = DataConfig(sources=(str(path),), validation=(str(place / "held.jsonl"),))
    corpus = prepare(data, 64, speaker, place / "prepared")
    assert any(
        note
        == "2 training conversations longer than the context: cut after 65 tokens; 1 of them dropped, with no answer left"
        for note in corpus.counts.notes
    ), corpus.counts.notes
    assert np.diff(corpus.train.starts).max() == 65
    assert corpus.train.n == 3


def test_a_template_that_leaves_out_a_role_is_counted(place: Path) -> None:
    path = place / "roles.jsonl"
    turns = [{"role": role, "content": role[:1] * 3} for role in ("system", "user", "assistant")]
    rows = [turns, turns[1:], [*turns[1:], {"role": "tool", "content": "xyz"}, turns[2]]]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    source = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role }}: "
        "{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (place / "drops.jinja").write_text(source)
    speaker = speaker_of(place / "base" / "model", str(place / "drops.jinja"), 256)
    data = DataConfig(sources=(str(path),), validation=(str(place / "held.jsonl"),))
    write_chats(place / "held.jsonl", 3)
    notes = prepare(data, 64, speaker, place / "prepared-drops").counts.notes
    said = "the chat template leaves out messages of the role {} in 1 training conversation"
    assert {said.format("system"), said.format("tool")} <= set(notes)


def test_eval_of_conversations_is_the_validation_loss(place: Path, tuned: Path) -> None:
    """The files that a run holds out, scored on their own, have its validation loss."""
    write_chats(place / "others.jsonl", 7, seed=5)
    changes = SHORT | {"data.validation": [str(place / "others.jsonl")]}
    folder, summary = tune(
        place / "base", [str(place / "chats.jsonl")], changes, out=place / "held", console=QUIET
    )
    found = lmsmith.evaluate(folder, chats=place / "others.jsonl")
    assert found.nats_per_token == pytest.approx(summary["best_val_loss"], rel=1e-6)
    assert found.as_dict() == lmsmith.evaluate(folder).as_dict()
    with pytest.raises(UsageError, match="has no chat template"):
        lmsmith.evaluate(place / "base", chats=place / "others.jsonl")
    with pytest.raises(UsageError, match="chats and stride do not go together"):
        lmsmith.evaluate(folder, chats=place / "others.jsonl", stride=3)


def test_mistakes_are_errors_and_leave_nothing(place: Path) -> None:
    with pytest.raises(UsageError, match="lmsmith tune RUN CHATS"):
        train(
            [str(place / "chats.jsonl")],
            SHORT | {"data.documents": "conversations", "train.init_from": str(place / "base")},
            out=place / "x",
            console=QUIET,
        )
    with pytest.raises(ConfigError, match="`tune` sets it to"):
        tuned_on(place, "x", **{"data.documents": "rows"})
    with pytest.raises(ConfigError, match="initial_batch_size cannot be used with conversations"):
        tuned_on(place, "x", **{"train.initial_batch_size": 1})
    (place / "one.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(DataError, match="only one conversation"):
        tune(place / "base", [str(place / "one.jsonl")], SHORT, out=place / "x", console=QUIET)
    assert not (place / "x").exists()


def test_damaged_conversations_are_one_error(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run" / "tokens" / "val.starts.npy").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        open_run(tmp_path / "run")


def test_a_recipe_repeats_the_run(tuned: Path, place: Path) -> None:
    tune(place / "base", [str(tuned / "config.toml")], {}, out=place / "repeated", console=QUIET)
    assert (place / "repeated/model/model.safetensors").read_bytes() == (
        tuned / "model/model.safetensors"
    ).read_bytes()


def test_config_of_tuned_runs_is_complete(tuned: Path) -> None:
    config, _ = open_run(tuned)
    assert isinstance(config, RunConfig)
    assert config.data.documents == "conversations"
    assert set(MACHINE)
