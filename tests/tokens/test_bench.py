"""The tokenizer benchmark: contenders with other ids are rejected, and results are consistent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmsmith.errors import TokenizerError
from lmsmith.tokens import bench
from lmsmith.tokens.bench import bench_encoding, bench_learning, learning_memory, machine
from lmsmith.tokens.bpe_train import learn_bpe

PROJECT = Path(__file__).resolve().parent.parent.parent
TEXT = "the cat sat on the mat, 1234 times; zwölf Öfen\n" * 200


def test_encoding() -> None:
    vocabulary = learn_bpe([TEXT], 300, pattern="gpt2")
    timings = bench_encoding(vocabulary, "a text", TEXT.encode(), rounds=2)
    assert timings[0].name == "lmsmith, warm"
    assert timings[0].times == 1
    assert {timing.task for timing in timings} == {"encode a text"}
    for timing in timings:
        assert timing.seconds > 0
        assert timing.megabytes_per_second == pytest.approx(
            len(TEXT.encode()) / 1e6 / timing.seconds
        )
        assert timing.times == pytest.approx(timing.seconds / timings[0].seconds)


def test_learning() -> None:
    timings = bench_learning(TEXT.encode(), 300, rounds=1)
    assert timings[0].name == "lmsmith, 2 threads"
    assert all(timing.seconds > 0 for timing in timings)


def test_contender_with_other_ids_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = bench.Contender("wrong", lambda: lambda: [1, 2, 3])
    monkeypatch.setattr(bench, "_encoders", lambda *_: [wrong])
    with pytest.raises(TokenizerError, match="wrong returns other ids"):
        bench_encoding(learn_bpe([TEXT], 300, pattern="gpt2"), "a text", b"text")


def test_machine_names_the_number_of_cores() -> None:
    assert "cores" in machine()


@pytest.mark.slow
def test_compiling_warns_once_and_later_starts_are_quick(tmp_path: Path) -> None:
    """Two new processes share an empty cache: the first compiles, the second loads."""
    code = (
        "from lmsmith.tokens.bpe_train import learn_bpe; learn_bpe(['some text'], "
        "260).encode('some text')"
    )
    warnings, seconds = [], []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(time.perf_counter() - start)
        warnings.append(done.stderr.count("compiling for this processor"))
    assert warnings == [1, 0]
    assert seconds[1] < 0.4 * seconds[0]


@pytest.mark.slow
def test_memory_of_learning_grows_with_pieces_not_with_text(tmp_path: Path) -> None:
    """After the buffers are allocated, more of the same words needs no more memory."""
    text = "".join(f"word{i % 997} and other{i % 89}.\n" for i in range(100_000)).encode()
    peaks = []
    for times in (16, 64):
        path = tmp_path / f"{times}.txt"
        path.write_bytes(text * times)
        peaks.append(learning_memory(path, 300))
    assert peaks[1] - peaks[0] < 0.4 * 48 * len(text)
