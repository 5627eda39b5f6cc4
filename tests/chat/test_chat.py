"""Talking to a model: the session, the terminal and the API."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import QUIET, SHORT, make_base, write_chats

import lmsmith
from lmsmith.chat.prepare import own_speaker
from lmsmith.chat.session import Chat
from lmsmith.cli import run as command
from lmsmith.errors import UsageError
from lmsmith.generate.text_model import TextModel


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned little, through the public call."""
    folder = tmp_path_factory.mktemp("chat")
    write_chats(folder / "chats.jsonl")
    base = make_base(folder)
    run = lmsmith.tune(
        base, folder / "chats.jsonl", out=folder / "tuned", settings=SHORT, progress=QUIET
    )
    return run.path


@pytest.fixture
def chat(tuned: Path) -> Chat:
    writer, _ = TextModel.load(tuned)
    return Chat(writer, own_speaker(tuned), max_tokens=8)


def answer(chat: Chat) -> str:
    return "".join(chat.answer())


def test_a_session_keeps_undoes_and_retries(chat: Chat, tmp_path: Path) -> None:
    chat.say("The cat")
    first = answer(chat)
    assert chat.messages == [
        {"role": "user", "content": "The cat"},
        {"role": "assistant", "content": first},
    ]
    assert chat.retry()
    again = answer(chat)
    assert again != first
    assert len(chat.messages) == 2
    chat.say("x")
    answer(chat)
    assert chat.undo()
    assert len(chat.messages) == 2
    chat.save(tmp_path / "saved.jsonl")
    assert json.loads((tmp_path / "saved.jsonl").read_text())["messages"] == chat.messages
    with pytest.raises(UsageError, match="exists already"):
        chat.save(tmp_path / "saved.jsonl")
    with pytest.raises(UsageError, match="is empty"):
        chat.say("  ")
    chat.clear()
    assert not chat.messages
    assert not chat.undo()
    assert not chat.retry()


def test_a_full_context_forgets_the_oldest_exchanges(chat: Chat) -> None:
    chat.messages.append({"role": "system", "content": "Hi"})
    for _ in range(6):
        chat.say("The cat saw x")
        answer(chat)
    assert chat.forgotten >= 6
    assert chat.forgotten % 2 == 0  # complete exchanges
    assert chat.messages[0]["role"] == "system"
    assert len(chat.messages) == 13
    chat.say("y" * 70)
    with pytest.raises(UsageError, match="does not fit into the model's context of 64 tokens"):
        answer(chat)


def test_an_answer_that_is_stopped_early_is_kept(chat: Chat) -> None:
    chat.say("The cat")
    pieces = chat.answer()
    read = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == {"role": "assistant", "content": read}


def test_the_api_answers_like_the_engine_with_the_templates_prompt(tuned: Path) -> None:
    lm = lmsmith.load(tuned)
    messages = [{"role": "user", "content": "The cat <|end|>"}]
    found = lm.chat(messages, temperature=0, max_tokens=12)
    # The token that the user wrote is text.
    control = lm.tokenizer.special_tokens  # type: ignore[attr-defined]
    ids = [control["<|user|>"], *b"The cat <|end|>", control["<|end|>"], control["<|assistant|>"]]
    drawn: list[int] = []
    for _ in range(12):
        logits = lm.logits(torch.tensor(ids + drawn))[-1]
        drawn.append(int(logits.argmax()))
        if drawn[-1] >= 256:
            drawn.pop()
            break
    assert found == bytes(drawn).decode("utf-8", "replace")
    stop = found[-2:]
    stopped = lm.chat(messages, temperature=0, max_tokens=12, stop=stop)
    assert stopped == found[: found.index(stop)]
    ids_drawn = set(drawn)
    other = lm.chat(messages, temperature=0, max_tokens=12, banned=ids_drawn)
    assert other != found
    for bad, message in (
        ([{"role": "assistant", "content": "a"}], "not a conversation"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last"),
        ([{"role": "user", "content": "a" * 80}], "leave out the oldest"),
        ([{"content": "a"}], "not a conversation"),
    ):
        with pytest.raises(UsageError, match=message):
            lm.chat(bad)
    with pytest.raises(UsageError, match="has no chat template"):
        lmsmith.load(tuned.parent / "base").chat(messages)


def typed(tuned: Path, text: str, *options: str, **more: Any) -> str:
    words = [sys.executable, "-m", "lmsmith", "chat", str(tuned), "--max-tokens", "6", *options]
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_terminal(tuned: Path, tmp_path: Path) -> None:
    lines = [
        *("The cat \\", "saw", "/retry", "/temp 0.1", "/temp x", "/nothing", "/save", "/help"),
        *("/save saved.jsonl", "/save saved.jsonl", "/undo", "/retry", "/new", "z" * 80, "/quit"),
    ]
    shown = typed(tuned, "\n".join(lines) + "\n", cwd=tmp_path)
    for text in (
        "temperature 0.1", "expected a number", "there is no command /nothing", "name of a file",
        "/undo  ", "saved saved.jsonl", "exists already", "dropped your last message",
        "there is no answer yet", "started again", "does not fit into the model's context",
    ):  # fmt: skip
        assert text in shown, text
    saved = json.loads((tmp_path / "saved.jsonl").read_text())["messages"]
    assert saved[0] == {"role": "user", "content": "The cat \nsaw"}
    assert len(saved) == 2


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(tuned: Path) -> None:
    words = [sys.executable, "-u", "-m", "lmsmith", "chat", str(tuned), "--temperature", "3"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("The cat\n")
    process.stdin.flush()
    process.stdout.read(1)  # the answer has begun
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    out, _ = process.communicate("/quit\n", timeout=60)
    assert process.returncode == 0, out


def test_tune_on_the_command_line(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chats = str(tuned.parent / "chats.jsonl")
    assert command(["tune", str(tuned), chats, "--show-mask", "1"], started=time.monotonic()) == 0
    shown = capfd.readouterr().out
    assert "chats.jsonl:1 (learned" in shown
    assert "<|end|><|assistant|>[[" in shown
    assert "<|end|>]]" in shown
    settings = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    words = [
        "tune",
        str(tuned),
        chats,
        "--out",
        str(tmp_path / "run"),
        "--lora.rank",
        "1",
        *settings,
    ]
    assert command(words, started=time.monotonic()) == 0
    shown = capfd.readouterr().out
    assert f"lmsmith chat {tmp_path / 'run'}" in shown
    assert "adapters of rank 1" in shown
    assert (tmp_path / "run" / "report.html").exists()
    assert command(["tune", str(tuned), chats, "--data.chat_template", "nothing"], started=0.0) == 2
    assert "expected lmsmith, chatml, llama3" in capfd.readouterr().err


def test_the_calls_of_chats_and_the_template_argument(tuned: Path) -> None:
    run = lmsmith.tune(
        tuned.parent / "base", [tuned.parent / "chats.jsonl"], out=tuned.parent / "chatml",
        template="chatml", lora_rank=1, settings=SHORT, progress=QUIET,
    )  # fmt: skip
    assert run.config.lora.rank == 1
    assert "<|im_start|>" in own_speaker(run.path).template.source
    assert isinstance(lmsmith.load(run).chat([{"role": "user", "content": "a"}], max_tokens=3), str)
