"""The benchmark runs, compares the ids of all contenders, and its figures hang together."""

import pytest

from lmsmith.errors import TokenizerError
from lmsmith.tokens import bench
from lmsmith.tokens.bench import bench_encoding, bench_learning, machine
from lmsmith.tokens.bpe_train import learn_bpe

TEXT = "the cat sat on the mat, 1234 times; zwölf Öfen\n" * 200


def test_encoding() -> None:
    vocabulary = learn_bpe([TEXT], 300, pattern="gpt2")
    timings = bench_encoding(vocabulary, "a text", TEXT.encode(), rounds=2)
    assert timings[0].name == "lmsmith, warm"
    assert timings[0].times == 1
    assert {timing.task for timing in timings} == {"encode a text"}
    for timing in timings:
        assert timing.seconds > 0
        assert timing.megabytes_per_second == pytest.approx(len(TEXT.encode()) / 1e6 / timing.seconds)
        assert timing.times == pytest.approx(timing.seconds / timings[0].seconds)


def test_learning() -> None:
    timings = bench_learning(TEXT.encode(), 300, rounds=1)
    assert timings[0].name == "lmsmith, 2 threads"
    assert all(timing.seconds > 0 for timing in timings)


def test_whoever_gives_other_ids_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    liar = bench.Contender("liar", lambda: lambda: [1, 2, 3])
    monkeypatch.setattr(bench, "_encoders", lambda *_: [liar])
    with pytest.raises(TokenizerError, match="liar gives other ids"):
        bench_encoding(learn_bpe([TEXT], 300, pattern="gpt2"), "a text", b"text")


def test_the_machine_has_a_name() -> None:
    assert "cores" in machine()
