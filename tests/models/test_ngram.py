"""N-grams: counts against a Counter; probabilities against dictionaries and published examples."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.models.ngram import FALLBACK, Discounts, Ngram, estimate_discounts
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.ngram_trie import count_ngrams

SMOOTHINGS = ("kneser-ney", "add-k", "mle")


def learn(
    ids: Sequence[int], vocab_size: int, n: int, smoothing: str = "kneser-ney", **settings: Any
) -> Ngram:
    config = NgramConfig(vocab_size=vocab_size, order=n, smoothing=smoothing, **settings)
    return Ngram.learn(config, np.array(ids, dtype=np.uint16))


def p_after(model: Ngram, context: Sequence[int]) -> np.ndarray:
    """The full distribution after a context, by scoring each token in turn."""
    rows = [[*context, w] for w in range(model.vocab_size)]
    return model.log_probabilities(torch.tensor(rows), n_given=len(context))[:, 0].exp().numpy()


class Plain:
    """The three estimates with dictionaries of tuples, as in the papers' equations."""

    def __init__(
        self, ids: Sequence[int], vocab_size: int, n: int, smoothing: str, k: float = 0.1
    ) -> None:
        self.V, self.n, self.smoothing, self.k = vocab_size, n, smoothing, k
        grams = {
            j: Counter(tuple(ids[i : i + j]) for i in range(len(ids) - j + 1))
            for j in range(1, n + 1)
        }
        self.counts = dict(grams)
        if smoothing == "kneser-ney":
            for j in range(1, n):  # the number of distinct tokens before each
                self.counts[j] = Counter(gram[1:] for gram in grams[j + 1])
        self.seen: dict[int, dict[tuple[int, ...], dict[int, int]]] = {
            j: defaultdict(dict) for j in range(1, n + 1)
        }
        for j, counts in self.counts.items():
            for gram, count in counts.items():
                self.seen[j][gram[:-1]][gram[-1]] = count
        self.D = {j: self._discounts(counts) for j, counts in self.counts.items()}

    @staticmethod
    def _discounts(counts: Counter[tuple[int, ...]]) -> tuple[float, float, float]:
        n1, n2, n3, n4 = (sum(c == i for c in counts.values()) for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3):
            return FALLBACK
        y = n1 / (n1 + 2 * n2)
        found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        return (
            found if all(0 <= d <= c for d, c in zip(found, (1, 2, 3), strict=True)) else FALLBACK
        )

    def p(self, context: tuple[int, ...], w: int) -> float:
        context = context[max(0, len(context) - self.n + 1) :]
        following = self.seen[len(context) + 1].get(context, {})
        total = sum(following.values())
        if self.smoothing == "mle":
            return following.get(w, 0) / total if total else self.p(context[1:], w)
        if self.smoothing == "add-k":
            return (following.get(w, 0) + self.k) / (total + self.k * self.V)
        lower = self.p(context[1:], w) if context else 1 / self.V
        if not total:
            return lower
        d = self.D[len(context) + 1]
        own = following.get(w, 0)
        own_share = (own - d[min(own, 3) - 1]) / total if own else 0.0
        return own_share + sum(d[min(c, 3) - 1] for c in following.values()) / total * lower


# ---- counts --------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=60, deadline=None)
@given(some.lists(some.integers(0, 4), min_size=1, max_size=60), some.integers(1, 7))
def test_counts_are_those_of_a_counter(ids: list[int], n: int) -> None:
    trie = count_ngrams(np.array(ids, dtype=np.uint16), 5, n)
    n_nodes = 1
    for order in range(1, n + 1):
        counts = Counter(tuple(ids[i : i + order]) for i in range(len(ids) - order + 1))
        n_nodes += len(counts)
        for gram, count in counts.items():
            node = trie.find(np.array(gram))
            assert node is not None
            assert trie.count[node] == count
            assert trie.order_of(node) == order
            assert trie.suffix[node] == trie.find(np.array(gram[1:], dtype=np.int64))
    assert len(trie.token) == n_nodes == trie.levels[-1]
    assert trie.find(np.full(n, 5)) is None


def test_large_vocabularies_memory_maps_and_texts_shorter_than_n(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 100_000, 500).astype(np.uint32)
    ids.tofile(tmp_path / "ids")
    trie = count_ngrams(np.memmap(tmp_path / "ids", dtype=np.uint32, mode="r"), 100_000, 3)
    assert np.array_equal(trie.token[1 : trie.levels[2]], np.unique(ids))
    assert count_ngrams(np.array([7, 7], dtype=np.uint16), 9, 255).levels[-1] == 3


# ---- published examples --------------------------------------------------------------------------


def test_worked_example_cows_eat() -> None:
    """Of eleven "cows eat", corn follows 4 times, grass 3, hay 2, if and which once each."""
    words = ["cows", "eat", "corn", "grass", "hay", "if", "which"]
    times = {"corn": 4, "grass": 3, "hay": 2, "if": 1, "which": 1}
    text = [part for word, n in times.items() for part in n * ["cows", "eat", word]]
    model = learn([words.index(word) for word in text], len(words), 3, "mle")
    p = p_after(model, [words.index("cows"), words.index("eat")])
    assert p == pytest.approx([times.get(word, 0) / 11 for word in words], abs=1e-15)


def test_worked_example_john_read_a_book() -> None:
    """Chen and Goodman 1998, section 2: maximum likelihood bigrams; | marks both ends of a
    sentence.
    """
    sentences = "| JOHN READ MOBY DICK | MARY READ A DIFFERENT BOOK | SHE READ A BOOK BY CHER |"
    text = sentences.split()
    words = sorted(set(text))
    model = learn([words.index(word) for word in text], len(words), 2, "mle")

    def p(sentence: str) -> float:
        ids = torch.tensor([[words.index(word) for word in f"| {sentence} |".split()]])
        return float(model.log_probabilities(ids).sum().exp())

    assert p("JOHN READ A BOOK") == pytest.approx(1 / 3 * 1 * 2 / 3 * 1 / 2 * 1 / 2, rel=1e-12)
    assert p("CHER READ A BOOK") == 0


# KenLM's `lmplz -o 2` on these sentences, as published in kpu/kenlm issue 405: log10 of
# probabilities.
SENTENCES = (
    "| I went to | I go to | You went to | You go to | Joe went to | Joe go to | Anna "
    "went ski | Anna went ski |"
)
KENLM = {
    "<unk>": -1.30103, "|": -1.1249387, "I": -1.0579919, "went": -0.6726411, "to": -1.1249387, "go": -0.82390875,
    "You": -1.0579919, "Joe": -1.0579919, "Anna": -1.0579919, "ski": -1.0579919, "to |": -0.26962152,
    "ski |": -0.7123581, "| I": -0.9649993, "I went": -0.383262, "You went": -0.383262, "Joe went": -0.383262,
    "Anna went": -0.50341624,
}  # fmt: skip


def test_kneser_ney_equals_kenlm() -> None:
    """KenLM counted "ski", preceded by one word, as a unigram of count 2, so D = 0.4, 1.6, 1.4
    there.
    """
    text = SENTENCES.split()
    words = [*dict.fromkeys(text), "<unk>"]
    learnt = learn([words.index(word) for word in text], len(words), 2)
    assert learnt.discounts[0].amounts == pytest.approx(
        (5 / 9, 7 / 6, 7 / 9)
    )  # from 5, 2, 1, 1 words of count 1 to 4
    assert learnt.discounts[1].amounts == pytest.approx((0.3, 2 - 3 * 0.3 * 2 / 7, 3.0))
    model = Ngram(
        learnt.config, learnt.trie, (Discounts(1, (0.4, 1.6, 1.4), True), learnt.discounts[1])
    )
    unigrams = p_after(model, [words.index("<unk>")])
    for gram, log10 in KENLM.items():
        *context, word = map(words.index, gram.split())
        p = p_after(model, context)[word] if context else unigrams[word]
        assert math.log10(p) == pytest.approx(log10, abs=2e-7), gram


# ---- against plain dictionaries ------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_probabilities_equal_a_plain_reference(test_data: Path, smoothing: str, n: int) -> None:
    text = (test_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:12_000]
    characters = sorted({*text, "\x00"})  # one that never occurs
    ids = [characters.index(c) for c in text]
    train, held_out = (
        ids[:10_000],
        [*ids[10_000:10_600], characters.index("\x00"), *ids[10_600:11_000]],
    )
    model = learn(
        train, len(characters), n, smoothing, **({"add_k": 0.03} if smoothing == "add-k" else {})
    )
    plain = Plain(train, len(characters), n, smoothing, k=0.03)
    for tokens in (held_out, train[-300:]):
        found = model.log_probabilities(torch.tensor([tokens]))[0].exp().numpy()
        wanted = [
            plain.p(tuple(tokens[max(0, i - n) : i]), tokens[i]) for i in range(1, len(tokens))
        ]
        assert found == pytest.approx(wanted, rel=1e-12, abs=0)
    assert n == 1 or (
        model.log_probabilities(torch.tensor([held_out])).isneginf().any() == (smoothing == "mle")
    )


@hypothesis.settings(max_examples=60, deadline=None)
@given(
    some.lists(some.integers(0, 5), min_size=1, max_size=200),
    some.integers(1, 5),
    some.sampled_from(SMOOTHINGS),
    some.lists(some.integers(0, 6), min_size=1, max_size=7),
)
def test_all_probabilities_after_any_context(
    ids: list[int], n: int, smoothing: str, context: list[int]
) -> None:
    model, plain = learn(ids, 7, n, smoothing), Plain(ids, 7, n, smoothing)
    p = p_after(model, context)
    assert p == pytest.approx([plain.p(tuple(context), w) for w in range(7)], rel=1e-12, abs=0)
    assert p.sum() == pytest.approx(1, rel=1e-12)
    following = model.next_logits(torch.tensor([context]), model.new_state(1)).exp()[0]
    assert following.numpy() == pytest.approx(p, rel=1e-12, abs=0)


@hypothesis.settings(max_examples=60, deadline=None)
@given(
    some.lists(some.integers(0, 3), min_size=1, max_size=40),
    some.integers(1, 4),
    some.lists(some.integers(0, 3), min_size=2, max_size=12),
)
def test_maximum_likelihood_gives_a_text_with_an_unseen_event_probability_zero(
    ids: list[int], n: int, text: list[int]
) -> None:
    """Shortening contexts does not change that: it happens only after such an event, or at the end
    of the training text.
    """
    seen = {tuple(ids[i : i + k]) for k in range(1, n + 1) for i in range(len(ids) - k + 1)}
    events = [tuple(text[max(0, i - n + 1) : i + 1]) for i in range(1, len(text))]
    possible = bool(
        learn(ids, 4, n, "mle").log_probabilities(torch.tensor([text])).isfinite().all()
    )
    unseen = next((event for event in events if event not in seen), None)
    if unseen is None:
        assert possible
    else:
        assert not possible or all(gram[:-1] != unseen[:-1] for gram in seen)


def test_discounts_that_cannot_be_estimated_are_marked() -> None:
    def of(*n_of_count: int) -> Discounts:
        return estimate_discounts(2, np.repeat(np.arange(1, 5, dtype=np.int32), n_of_count))

    assert (
        of(0, 4, 3, 2) == of(10, 1, 9, 0) == Discounts(2, FALLBACK, estimated=False)
    )  # D2 of the second is negative
    assert of(6, 7, 2, 0).estimated


# ---- state, files, speed -------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_reading_in_pieces_equals_reading_at_once(smoothing: str, n: int) -> None:
    rng = np.random.default_rng(0)
    model, ids = (
        learn(rng.integers(0, 4, 300).tolist(), 5, n, smoothing),
        torch.from_numpy(rng.integers(0, 5, (3, 40))),
    )
    whole = model.log_probabilities(ids)
    for sizes in ((1, 2, 3, 30, 3), (20, 19)):
        state, start, parts = model.new_state(3), 0, []
        for size in sizes:
            parts.append(model.log_probabilities(ids[:, start : start + size + 1], state=state))
            start += size
        assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(model.log_probabilities(ids, n_given=7), whole[:, 6:])
    state = model.new_state(3)
    for i in range(20):
        after = model.next_logits(ids[:, i : i + 1], state)
        assert after.gather(1, ids[:, i + 1 : i + 2])[:, 0].tolist() == pytest.approx(
            whole[:, i].tolist(), rel=1e-12
        )


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_tensors_restore_the_model(smoothing: str) -> None:
    ids = np.random.default_rng(0).integers(0, 9, 400)
    model = learn(ids.tolist(), 9, 3, smoothing)
    again = Ngram.from_tensors(
        model.config, {name: tensor.clone() for name, tensor in model.tensors().items()}
    )
    row = torch.from_numpy(ids[None])
    assert torch.equal(model.log_probabilities(row), again.log_probabilities(row))
    assert again.n_parameters() == sum(
        len(Counter(zip(*(ids[i:] for i in range(k)), strict=False))) for k in (1, 2, 3)
    )
    with pytest.raises(ValueError, match="3-grams"):
        Ngram.from_tensors(NgramConfig(vocab_size=9, order=4), model.tensors())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_twenty_megabytes_are_counted_in_ten_seconds(test_data: Path, kind: str) -> None:
    text = b"".join(path.read_bytes() for path in sorted((test_data / "novels").glob("*.txt")))
    ids = np.frombuffer((text + text)[: 20 * 10**6], dtype=np.uint8).astype(np.uint16)
    vocab_size = 256
    if kind == "pieces":
        ids = np.unique(ids[:-3].astype(np.uint64) * 65536 + ids[3:], return_inverse=True)[1][
            ::4
        ].astype(np.uint16)
        vocab_size = 1 + int(ids.max())
    count_ngrams(ids[:100], vocab_size, 5)  # compiles
    start = time.process_time()
    count_ngrams(ids, vocab_size, 5)
    assert time.process_time() - start < 10
