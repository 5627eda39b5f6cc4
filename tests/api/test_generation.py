"""What `LM` offers for generation beyond a text: tokens, beams, packed weights, drafts."""

import math

import pytest
from small_run import TINY

import lmsmith
from lmsmith.errors import ConfigError, UsageError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat. the dog sat on the log. " * 300)
    return path


@pytest.fixture(scope="module")
def run(text):
    return lmsmith.train(
        text,
        preset="llama",
        steps=30,
        settings=TINY | {"model.context_length": 64},
        tokenizer="char",
        out=text.parent / "run",
    )


@pytest.fixture(scope="module")
def ngram(text, run):
    tokens = text.parent / "run" / "tokens"
    return lmsmith.train(text, preset="ngram", tokenizer=str(tokens), out=text.parent / "ngram")


def test_tokens_are_those_of_the_text_with_their_probabilities(run) -> None:
    lm = lmsmith.load(run)
    tokens = list(lm.tokens("the ", max_tokens=20, alternatives=3))
    assert "".join(token.text for token in tokens) == lm.generate("the ", max_tokens=20)
    first = tokens[0]
    expected = dict(lm.next_token("the ", top=lm.model.vocab_size))
    assert math.exp(first.log_probability) == pytest.approx(expected[first.text], rel=1e-4)
    assert len(first.alternatives) == 3
    assert max(first.alternatives, key=lambda pair: pair[1]) == first.alternatives[0]
    with pytest.raises(UsageError, match="no stop sequences"):
        lm.tokens("the ", stop="x")


def test_one_beam_is_the_greedy_text(run) -> None:
    lm = lmsmith.load(run)
    (best,) = lm.beam_search("the ", n_beams=1, max_tokens=15)
    assert best.text == lm.generate("the ", max_tokens=15, temperature=0)
    two = lm.beam_search("the ", n_beams=4, n_best=2, max_tokens=15)
    assert two[0].score >= two[1].score
    assert two[0].score >= best.score


def test_drafts_give_the_same_text(run, ngram) -> None:
    plain, drafted = lmsmith.load(run), lmsmith.load(run, draft=ngram)
    for seed in range(3):
        options = {"max_tokens": 40, "seed": seed, "temperature": 0.7}
        assert drafted.generate("the ", **options) == plain.generate("the ", **options)
    batch = {"n": 2, "max_tokens": 20}
    assert drafted.generate_batch(["the ", "a"], **batch) == plain.generate_batch(
        ["the ", "a"], **batch
    )


def test_packed_weights_change_the_score_little(run, text, ngram) -> None:
    exact = lmsmith.load(run).score(text.read_text()[:2000]).bits_per_byte
    for weights in ("bf16", "int8"):
        lm = lmsmith.load(run, weights=weights)
        assert lm.score(text.read_text()[:2000]).bits_per_byte == pytest.approx(exact, abs=0.02)
        assert lm.model.n_parameters() == lmsmith.load(run).model.n_parameters()
    with pytest.raises(UsageError, match="for Transformers"):
        lmsmith.load(ngram, weights="int8")
    with pytest.raises(ConfigError, match="expected fp32, bf16, int8"):
        lmsmith.load(run, weights="int4")


def test_penalties_and_banned_tokens_reach_the_sampler(run) -> None:
    lm = lmsmith.load(run)
    (t,) = lm.tokenizer.encode("t")
    assert "t" not in lm.generate("the ", max_tokens=40, banned=[int(t)])
    assert lm.generate("the ", max_tokens=5, logit_bias={int(t): 100.0}) == "ttttt"
    with pytest.raises(TypeError, match="unexpected keyword"):
        lm.stream("the ", temprature=1)
