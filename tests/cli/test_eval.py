"""`lmsmith eval` as users run it: its figures are those of a plain loop in float64."""

import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, TINY, Lmsmith

from lmsmith.checkpoint import load_model, save_model
from lmsmith.run_folder import load_for_use
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import save_tokenizer


def plain_loop(run: Path, text: str) -> tuple[float, int]:
    """Nats and number of tokens of a text, in float64, with adjacent windows as in nanoGPT."""
    model, tokenizer, _ = load_for_use(run)
    model = model.double()
    ids = [int(id) for id in tokenizer.encode(text)]
    T = model.config.context_length
    nats = math.log(tokenizer.vocab_size)  # there is no context before the first character
    with torch.no_grad():
        for start in range(0, len(ids) - 1, T):
            window = ids[start : start + T + 1]
            p = model(torch.tensor([window[:-1]])).double().softmax(-1)[0]
            nats -= sum(math.log(p[i, id]) for i, id in enumerate(window[1:]))
    return nats, len(ids)


def test_scores_match_a_plain_loop(lmsmith: Lmsmith, run: Path) -> None:
    text = TEXT[3000:4321]
    (lmsmith.cwd / "other.txt").write_text(text)
    done = lmsmith("eval", "run", "--text", "other.txt", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    nats, n_tokens = plain_loop(run, text)
    assert found["nats_per_token"] == pytest.approx(nats / n_tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / n_tokens), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-6)
    assert (found["n_tokens"], found["n_bytes"], found["n_unknown"]) == (len(text), len(text), 0)
    lines = dict(
        line.split() for line in lmsmith("eval", "run", "--text", "other.txt").out.splitlines()
    )
    shown = {"nats_per_token", "perplexity", "bits_per_byte", "n_tokens", "n_bytes"}
    assert lines.keys() == shown < found.keys()
    assert all(found[name] == 0 for name in found.keys() - shown)  # others get a note
    assert lines["nats_per_token"] == f"{found['nats_per_token']:.4f}"
    assert lines["n_bytes"] == "1,321"


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_packed_weights_and_their_change(lmsmith: Lmsmith, run: Path, weights: str) -> None:
    """The same matrices rounded here, in place of the run's."""
    text = TEXT[3000:4321]
    (lmsmith.cwd / "other.txt").write_text(text)
    done = lmsmith("eval", "run", "--text", "other.txt", "--weights", weights, "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    rounded = shutil.copytree(run, lmsmith.cwd / "rounded")
    tensors, config = load_model(rounded / "model")
    for name, matrix in tensors.items():
        if matrix.dim() != 2 or "ngram" in name or "position" in name or "value" in name:
            continue
        if weights == "bf16":
            matrix.copy_(matrix.bfloat16())
        else:
            step = matrix.abs().amax(1, keepdim=True) / 127
            matrix.copy_(torch.round(matrix / step) * step)
    save_model(rounded / "model", tensors, config)
    nats, n_tokens = plain_loop(rounded, text)
    assert found["nats_per_token"] == pytest.approx(nats / n_tokens, rel=1e-6)
    nats, _ = plain_loop(run, text)
    full = nats / math.log(2) / len(text)
    assert found["fp32_bits_per_byte"] == pytest.approx(full, rel=1e-6)
    change = found["bits_per_byte"] - found["fp32_bits_per_byte"]
    assert found["bits_per_byte_change"] == pytest.approx(change, abs=1e-12)
    assert 0 < abs(change) < 0.02
    shown = " ".join(
        lmsmith("eval", "run", "--text", "other.txt", "--weights", weights).out.split()
    )
    assert f"with fp32 weights bits_per_byte is {full:.4f}, so {weights} changes it by " in shown
    # Without a text, on the validation text.
    done = lmsmith("eval", "run", "--weights", weights, "--json")
    assert json.loads(done.out)["weights"] == weights


def test_a_model_with_nothing_to_pack(lmsmith: Lmsmith) -> None:
    done = lmsmith("train", "book.txt", "--preset", "ngram", "--model.order", 3, "--out", "counts")
    assert done.status == 0, done.err
    done = lmsmith("eval", "counts", "--weights", "int8")
    assert (done.status, done.out) == (2, "")
    assert "--weights int8 is for Transformers" in done.err
    assert "Traceback" not in done.err


def test_ids_without_a_token_are_scored_but_not_generated(lmsmith: Lmsmith) -> None:
    """Most ids have no token: an untrained model would sample one of them at nearly every step."""
    gap = BpeTokenizer(
        [*(bytes([b]) for b in range(256)), *[None] * 5000], [], "gpt2", {"<|endoftext|>": 5000}
    )
    save_tokenizer(gap, lmsmith.cwd / "gap")
    done = lmsmith("train", "book.txt", "--tokenizer", "gap", "--steps", 2, *TINY, "--out", "holes")
    assert done.status == 0, done.err
    assert "note     4,999 of the 5,256 ids belong to no token and are never generated" in done.out
    assert "## step 2" in (lmsmith.cwd / "holes" / "samples.md").read_text()
    assert lmsmith("generate", "holes", "The", "--max-tokens", 200).status == 0
    (lmsmith.cwd / "other.txt").write_text("The cat.", encoding="utf-8")
    found = json.loads(lmsmith("eval", "holes", "--text", "other.txt", "--json").out)
    assert found["n_ids_without_token"] == 4999
    assert found["nats_per_token"] > math.log(
        3000
    )  # the unused ids have nearly all of the probability
    shown = lmsmith("eval", "holes", "--text", "other.txt").out
    assert "note: 4,999 of the model's 5,256 ids belong to no token; the probability" in shown


def test_weights_that_are_not_finite_are_refused_by_every_command(
    lmsmith: Lmsmith, run: Path
) -> None:
    tensors, config = load_model(run / "model")
    tensors["head.weight"][2, 1] = math.nan
    save_model(run / "model", tensors, config)
    for words in (
        ["eval", "run"],
        ["generate", "run", "The"],
        ["compare", "run", "--text", "book.txt"],
        ["export", "run", "--to", "hf", "--out", "exported"],
        ["train", "book.txt", "--from", "run", "--out", "tuned", "--steps", 2],
    ):
        done = lmsmith(*words)
        assert done.status == 1, words
        assert "has weights that are not finite numbers: head.weight (1 NaN of" in done.err, words
    assert sorted(path.name for path in lmsmith.cwd.iterdir()) == ["book.txt", "run"]


def test_a_nan_score_is_refused(lmsmith: Lmsmith, run: Path) -> None:
    """The weights are finite, but so large that activations overflow."""
    tensors, config = load_model(run / "model")
    tensors["blocks.0.feed_forward.up.weight"].fill_(3e38)
    tensors["blocks.0.feed_forward.down.weight"][:, ::2] = 1.0  # infinite minus infinite
    tensors["blocks.0.feed_forward.down.weight"][:, 1::2] = -1.0
    save_model(run / "model", tensors, config)
    for words in (
        ["eval", "run"],
        ["eval", "run", "--text", "book.txt"],
        ["compare", "run", "--text", "book.txt"],
    ):
        done = lmsmith(*words)
        assert done.status == 1, words
        assert "probabilities are NaN" in done.err, words


def test_unknown_characters_are_counted_and_scored(lmsmith: Lmsmith, run: Path) -> None:
    text = "The cat lost the caté.\n中文 in March.\n" * 20
    known = "".join(c for c in text if c in TEXT)
    (lmsmith.cwd / "other.txt").write_text(text, encoding="utf-8")
    done = lmsmith("eval", "run", "--text", "other.txt", "--json")
    found = json.loads(done.out)
    nats, n_tokens = plain_loop(run, known)
    n_bytes, n_unknown_bytes = len(text.encode()), 20 * (2 + 3 + 3)
    assert (found["n_unknown"], found["n_tokens"], found["n_bytes"]) == (60, n_tokens, n_bytes)
    assert found["nats_per_token"] == pytest.approx(nats / n_tokens, rel=1e-6)
    unknown_bits = 8 * n_unknown_bytes + math.log2(math.comb(n_tokens + 60, 60))
    assert found["bits_per_byte"] == pytest.approx(
        (nats / math.log(2) + unknown_bits) / n_bytes, rel=1e-6
    )
    shown = lmsmith("eval", "run", "--text", "other.txt").out
    charged = f"their 160 bytes and their positions add {unknown_bits:,.0f} bits to the score"
    assert f"60 characters of the text are not in the vocabulary; {charged}" in shown


def test_invalid_bytes_are_scored_as_in_compare(lmsmith: Lmsmith, run: Path) -> None:
    (lmsmith.cwd / "odd.txt").write_bytes(b"The cat \xff\xfe saw\r\n" * 9)
    assert "not UTF-8" in lmsmith("eval", "run", "--text", "odd.txt").err
    how = ("--text", "odd.txt", "--json")
    found = json.loads(lmsmith("eval", "run", "--data.errors", "replace", *how).out)
    assert (found["n_bytes"], found["n_invalid"]) == (9 * 15, 18)
    done = lmsmith("compare", "run", *how)
    (entry,) = (entry for entry in json.loads(done.out) if entry["name"] == "run")
    assert entry["bits_per_byte"] == found["bits_per_byte"]
    shown = lmsmith("eval", "run", "--data.errors", "replace", "--text", "odd.txt").out
    assert "note: 18 bytes of the text are not UTF-8; they are scored as raw bytes" in shown


def test_one_text_has_the_same_score_in_every_format(lmsmith: Lmsmith, run: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    place, text = lmsmith.cwd / "texts", TEXT[:2000]
    place.mkdir()
    (place / "a.txt").write_text(text)
    (place / "b.md").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (place / "c.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (place / "d.txt.gz").write_bytes(gzip.compress(text.encode()))
    (place / "e.txt.zst").write_bytes(
        bytes(pyarrow.compress(text.encode(), codec="zstd", asbytes=True))
    )
    (place / "f.txt").write_bytes(text.encode("utf-16"))
    pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), place / "g.parquet")
    found = [
        json.loads(lmsmith("eval", "run", "--json", "--text", path).out)
        for path in sorted(place.iterdir())
    ]
    assert len(found) == 7
    assert all(score == found[0] for score in found)
    assert found[0]["n_bytes"] == len(text)
    (lmsmith.cwd / "other.jsonl").write_text(json.dumps({"body": text}) + "\n")
    other = lmsmith("eval", "run", "--json", "--text", "other.jsonl", "--data.text_field", "body")
    assert json.loads(other.out) == found[0]
    (lmsmith.cwd / "latin.txt").write_bytes(("é" + text).encode("latin-1"))
    latin = json.loads(
        lmsmith("eval", "run", "--json", "--text", "latin.txt", "--data.encoding", "latin-1").out
    )
    assert (latin["n_unknown"], latin["n_bytes"]) == (1, len(text) + 2)


def test_a_smaller_stride_gives_more_context(lmsmith: Lmsmith, run: Path) -> None:
    side_by_side, overlapping = (
        json.loads(lmsmith("eval", "run", "--json", "--text", "book.txt", "--stride", stride).out)
        for stride in (16, 4)
    )
    assert overlapping["n_tokens"] == side_by_side["n_tokens"]
    assert overlapping["nats_per_token"] < side_by_side["nats_per_token"]


def test_without_a_text_it_scores_the_validation_text(lmsmith: Lmsmith) -> None:
    """The model of a run has its best weights, and the run's best loss is theirs."""
    backwards = TEXT + TEXT[: len(TEXT) // 9 + 1][::-1]
    (lmsmith.cwd / "book.txt").write_text(backwards)
    assert lmsmith("train", "book.txt", "--steps", 200, *TINY, "--out", "run").status == 0
    summary = json.loads((lmsmith.cwd / "run" / "summary.json").read_text())
    assert summary["best_val_loss"] < summary["val_loss"]
    found = json.loads(lmsmith("eval", "run", "--json").out)
    assert found["nats_per_token"] == pytest.approx(summary["best_val_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(summary["best_val_bits_per_byte"], rel=1e-6)
    assert (found["n_tokens"], found["n_bytes"]) == (
        summary["n_val_tokens"],
        summary["n_val_bytes"],
    )
    held_out = (lmsmith.cwd / "run" / "tokens" / "validation.txt").read_text()
    nats, n_tokens = plain_loop(lmsmith.cwd / "run", held_out)
    assert found["nats_per_token"] == pytest.approx(nats / n_tokens, rel=1e-6)
    assert held_out == backwards[int(len(backwards) * 0.9) :]


def test_a_model_without_its_run_has_no_validation_text(lmsmith: Lmsmith, run: Path) -> None:
    done = lmsmith("eval", "run/model")
    assert done.status == 1
    assert "run/model has no validation text of its own. Name a text with --text FILE." in done.err
    assert np.isfinite(
        json.loads(lmsmith("eval", "run/model", "--json", "--text", "book.txt").out)[
            "nats_per_token"
        ]
    )


def test_a_run_without_its_tokenizer(lmsmith: Lmsmith, run: Path) -> None:
    for file in [*run.glob("model/tokenizer*"), *run.glob("tokens/tokenizer*")]:
        file.unlink()
    for words in (["eval", "run"], ["eval", "run", "--tasks", "story_object"], ["generate", "run"]):
        done = lmsmith(*words)
        assert (done.status, done.out) == (1, "")
        assert "run has no tokenizer" in done.err
        assert "Traceback" not in done.err
