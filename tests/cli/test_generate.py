"""`lmsmith generate` as users run it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LINUX, TEXT, TINY, Lmsmith


def test_the_seed_determines_the_continuation(lmsmith: Lmsmith, run: Path) -> None:
    first = lmsmith("generate", "run", "The cat", "--max-tokens", 40)
    assert (first.status, first.err) == (0, "")
    assert re.fullmatch(r"The cat(?s:.{40})\n", first.out)
    assert set(first.out) <= set(TEXT)
    assert lmsmith("generate", "run", "The cat", "--max-tokens", 40, "--seed", 1).out == first.out
    assert lmsmith("generate", "run", "--seed", 2, "--max-tokens=40", "The cat").out != first.out
    assert lmsmith("generate", "run/model", "The cat", "--max-tokens", 40).out == first.out


def test_n_gives_n_samples_and_the_first_equals_that_without_n(lmsmith: Lmsmith, run: Path) -> None:
    alone = lmsmith("generate", "run", "My aunt", "--max-tokens", 20).out
    done = lmsmith("generate", "run", "My aunt", "--max-tokens", 20, "--n", 3)
    texts = re.split(r"--- \d\n", done.out)
    assert len(texts) == 4
    assert texts[0] == ""
    assert texts[1] == alone
    assert len(set(texts)) == 4


def test_all_ways_of_greedy_sampling_agree(lmsmith: Lmsmith, run: Path) -> None:
    """Each of these options leaves only the most likely token."""
    ways = [
        ["--temperature", 0],
        ["--top-k", 1],
        ["--top-p", 1e-9],
        ["--min-p", 1],
        ["--temperature", 1e-9],
    ]
    texts = {
        lmsmith("generate", "run", "A bird", "--max-tokens", 30, "--seed", i, *way).out
        for i, way in enumerate(ways)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--beams", 2, "--temperature", 2], "--temperature"),
        (["--beams", 2, "--top-p", 0.5], "--top-p"),
        (["--beams", 2, "--seed", 7], "--seed"),
        (["--beams", 2, "--speed"], "--speed"),
        (["--beams", 2, "--show-probs"], "--show-probs"),
        (["--beams", 2, "--n", 3], "--n 3"),
        (["--length-penalty", 2], "--length-penalty"),
    ],
)
def test_options_without_effect_are_refused(
    lmsmith: Lmsmith, run: Path, options: list[object], named: str
) -> None:
    done = lmsmith("generate", "run", "A bird", *options)
    assert (done.status, done.out) == (2, "")
    assert named in done.err
    assert "--beams" in done.err


def test_the_first_stop_sequence_ends_the_text(lmsmith: Lmsmith, run: Path) -> None:
    whole = lmsmith("generate", "run", "Nobody", "--max-tokens", 60).out
    stop = whole[20:22]
    done = lmsmith(
        "generate", "run", "Nobody", "--max-tokens", 60, "--stop", "no such text", "--stop", stop
    )
    assert done.out == whole[: whole.index(stop, len("Nobody"))] + "\n"


def test_unknown_characters_are_named_and_skipped(lmsmith: Lmsmith, run: Path) -> None:
    done = lmsmith("generate", "run", "Thé cœt", "--max-tokens", 10)
    assert done.status == 0
    assert (
        done.err
        == "note: 2 of the prompt's characters are not in the vocabulary and are skipped: éœ\n"
    )
    assert done.out.startswith("Thé cœt")
    assert (
        done.out.removeprefix("Thé cœt")
        == lmsmith("generate", "run", "Th ct", "--max-tokens", 10).out[5:]
    )
    done = lmsmith("generate", "run", "中文", "--max-tokens", 10)
    assert done.status == 2
    assert "no character that this model's char tokenizer knows" in done.err


def test_unknown_words_are_counted(lmsmith: Lmsmith) -> None:
    tiny = [*TINY, "--tokenizer=word"]
    assert lmsmith("train", "book.txt", "--steps", 3, *tiny, "--out", "words").status == 0
    done = lmsmith("generate", "words", "The zebra saw", "--max-tokens", 5)
    assert done.status == 0
    assert (
        done.err
        == "note: 1 of the prompt's words are not in the vocabulary; the model reads <unk> "
        "instead\n"
    )
    assert len(re.findall(r"\w+|<unk>", done.out)) >= 4


def test_an_empty_prompt_starts_a_line(lmsmith: Lmsmith, run: Path) -> None:
    """One document has no end-of-text token, so a line break is the closest to a beginning."""
    after_newline = lmsmith("generate", "run", "\n", "--max-tokens", 20).out
    for done in (
        lmsmith("generate", "run", "", "--max-tokens", 20),
        lmsmith("generate", "run", "--max-tokens", 20),
        lmsmith("generate", "run", "--max-tokens", 20, stdin="\n"),
    ):
        assert (done.status, done.err) == (0, "")
        assert "\n" + done.out == after_newline


def test_an_empty_prompt_starts_a_document(lmsmith: Lmsmith) -> None:
    lines = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (lmsmith.cwd / "lines.jsonl").write_text(lines)
    assert lmsmith("train", "lines.jsonl", "--steps", 200, *TINY, "--out", "lines").status == 0
    done = lmsmith("generate", "lines", "", "--max-tokens", 500, "--temperature", 0.3)
    assert done.status == 0
    assert done.out.startswith(("The", "A ", "My", "No"))
    assert "<|endoftext|>" not in done.out  # it ends there
    assert len(done.out) < 500


def test_prompts_from_a_pipe(lmsmith: Lmsmith, run: Path) -> None:
    done = lmsmith("generate", "run", "--max-tokens", 15, stdin="The cat\r\nA bird")
    one, other = (
        lmsmith("generate", "run", "--max-tokens", 15, prompt).out
        for prompt in ("The cat", "A bird")
    )
    assert (done.status, done.out) == (0, one + other)
    done = lmsmith("generate", "run", "--max-tokens", 15, stdin=b"The cat\nA \xff bird\n")
    assert (done.status, done.out) == (1, one)
    assert "line 2 of standard input is not UTF-8: byte 0xFF at offset 2 of the line" in done.err


def test_prompts_are_continued_as_they_arrive(lmsmith: Lmsmith, run: Path) -> None:
    if not LINUX:
        pytest.skip("needs a named pipe")
    pipe = lmsmith.cwd / "pipe"
    os.mkfifo(pipe)
    holding = os.open(pipe, os.O_RDWR)  # keeps both ends from waiting for each other
    process = lmsmith.start("generate", "run", "--max-tokens", 10, stdin=pipe)
    with pipe.open("w") as writing:
        writing.write("The cat\n")
        writing.flush()
        process.until(lambda: re.fullmatch(r"The cat(?s:.{10})\n", process.out()))
        assert not process.ended()
        writing.write("A bird\n")
    os.close(holding)
    assert re.fullmatch(r"The cat(?s:.{10})\nA bird(?s:.{10})\n", process.wait().out)


@pytest.mark.skipif(not LINUX, reason="pseudo-terminals")
def test_prompts_on_a_terminal(lmsmith: Lmsmith, run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = lmsmith.start("generate", "run", "--max-tokens", 10, stdin=Path(os.ttyname(theirs)))
    process.until(lambda: "an empty line or Ctrl-D quits.\n> " in process.out())
    os.write(ours, b"The cat\n")
    process.until(lambda: re.search(r"> The cat(?s:.{10})\n> ", process.out()))
    os.write(ours, "中\n".encode())  # refused, then the next prompt is read
    process.until(lambda: "no character" in process.err())
    os.write(ours, b"A bird\n\x04")
    done = process.wait()
    assert done.status == 0
    assert re.search(r"> A bird(?s:.{10})\n> \n$", done.out)
    os.close(ours)
    os.close(theirs)


def test_ctrl_c_stops_the_text_and_then_the_command(lmsmith: Lmsmith, run: Path) -> None:
    """No message about signals is printed."""
    if not LINUX:
        pytest.skip("needs a pseudo-terminal")
    import pty

    ours, theirs = pty.openpty()
    slow = {"lmsmith.generate.engine:choose": 0.02}
    stdin = Path(os.ttyname(theirs))
    process = lmsmith.start("generate", "run", "--max-tokens", 4000, stdin=stdin, slow=slow)
    process.until(lambda: "Ctrl-D quits.\n> " in process.out())
    os.write(ours, b"The cat\n")
    process.until(lambda: re.search(r"> The cat(?s:.{3})", process.out()))
    process.send(signal.SIGINT)
    process.until(lambda: re.search(r"> The cat(?s:.{3,})\n> $", process.out()))
    assert len(process.out()) < 2000
    process.send(signal.SIGINT)
    done = process.wait()
    assert (done.status, done.err) == (0, "")
    os.close(ours)
    os.close(theirs)


def test_sigterm_at_the_prompt(lmsmith: Lmsmith, run: Path) -> None:
    if not LINUX:
        pytest.skip("needs a pseudo-terminal")
    import pty

    ours, theirs = pty.openpty()
    process = lmsmith.start("generate", "run", stdin=Path(os.ttyname(theirs)))
    process.until(lambda: "Ctrl-D quits.\n> " in process.out())
    process.send(signal.SIGTERM)
    done = process.wait()
    assert (done.status, done.err.strip()) == (143, "lmsmith: stopped by SIGTERM")
    os.close(ours)
    os.close(theirs)


def test_it_streams(lmsmith: Lmsmith, run: Path) -> None:
    if not LINUX:
        pytest.skip("functions are slowed down in forked processes alone")
    slow = {"lmsmith.generate.engine:choose": 0.05}
    process = lmsmith.start("generate", "run", "The cat", "--max-tokens", 400, slow=slow)
    process.until(lambda: len(process.out()) >= len("The cat") + 2)
    assert len(process.out()) < 100
    process.send(signal.SIGINT)
    done = process.wait()
    assert (done.status, done.err) == (130, "lmsmith: stopped by SIGINT\n")


def test_a_closed_pipe_ends_generation_quietly(lmsmith: Lmsmith, run: Path) -> None:
    if not LINUX:
        pytest.skip("needs a named pipe")
    pipe = lmsmith.cwd / "pipe"
    os.mkfifo(pipe)
    holding = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = lmsmith.start("generate", "run", "The cat", "--max-tokens", 4000, stdout=pipe)
    assert process.until(lambda: read_some(holding)) == b"The cat"
    os.close(holding)
    done = process.wait()
    assert (done.status, done.err) == (0, "")


def read_some(pipe: int) -> bytes:
    try:
        return os.read(pipe, 7)  # empty until the other end is open
    except BlockingIOError:
        return b""


def test_a_terminal_that_cannot_encode_a_character(lmsmith: Lmsmith) -> None:
    """In a new process: Python chooses the encoding of standard output when it starts."""
    (lmsmith.cwd / "czech.txt").write_text("čeština\n" * 300, encoding="utf-8")
    assert lmsmith("train", "czech.txt", "--steps", 2, *TINY, "--out", "czech").status == 0
    environment = {**lmsmith.environment, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "lmsmith", "generate", "czech", "č", "--max-tokens", "5"],
        cwd=lmsmith.cwd,
        env=environment,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"?")


def test_inspect_writes_a_page(lmsmith: Lmsmith, run: Path) -> None:
    done = lmsmith("inspect", "run", "--prompt", "The cat saw", "--out", "inspect.html")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "inspect.html"
    page = (lmsmith.cwd / "inspect.html").read_text(encoding="utf-8")
    assert "Logit lens" in page
    done = lmsmith("report", "run", "--inspect", "--out", "report.html")
    assert (done.status, done.err) == (0, "")
    assert "Logit lens" in (lmsmith.cwd / "report.html").read_text(encoding="utf-8")
    for words, what in (
        (("inspect", "none"), "none is not a run"),
        (("inspect", "run", "--text", "none.txt"), "there is no file or folder none.txt"),
        (("inspect", "run", "--out", "no/page.html"), "there is no folder no"),
    ):
        done = lmsmith(*words)
        assert done.status == 2 or done.status == 1
        assert what in done.err
        assert "Traceback" not in done.err
