"""Supervised fine-tuning against pre-training: positions per second of the same model and length.

    python benchmarks/tune.py [--rounds 3] [--steps 40] [--preset llama] [--context 256]

A round is a pre-training run on generated stories and a tuning run (`lmsmith tune`) of its model on
generated conversations, with the same rows per batch and the same context. Positions are all tokens
that the model reads, learned or not, without padding. Prints the median time of a step of each, the
padding that is left after packing, and the ratio of the rates. Goals: a ratio of at least 0.9, and
at most 5% padding.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import lmsmith
from lmsmith.data.batches.packing import batches_of
from lmsmith.run_folder import open_run
from lmsmith.text.stories import write_stories
from lmsmith.text.story_chats import write_conversations

WARM = 5  # steps that are not counted, at the start of a run


def step_times(run: Path) -> list[float]:
    """Seconds of each step after the first ones."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    seconds = [line["seconds"] for line in lines if line["kind"] == "train"]
    return [b - a for a, b in zip(seconds[WARM - 1 :], seconds[WARM:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    given = parser.parse_args()
    model = {
        "model.n_layer": 4,
        "model.d_model": 192,
        "model.n_head": 3,
        "model.context_length": given.context,
    }
    common = {"train.log_every": 1, "train.batch_size": given.rows, "train.eval_every": 10_000}
    base_times: list[float] = []
    tune_times: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_stories(folder / "stories.jsonl", 3_000_000, 1)
        write_conversations(folder / "chats.jsonl", 4000, 1)
        for number in range(given.rounds):
            base = lmsmith.train(
                folder / "stories.jsonl",
                out=folder / f"base-{number}",
                preset=given.preset,
                steps=given.steps,
                settings=model | common | {"tokenizer": "bpe:2048"},
                progress=False,
            )
            tuned = lmsmith.tune(
                base,
                folder / "chats.jsonl",
                out=folder / f"chat-{number}",
                steps=given.steps,
                settings=common,
                progress=False,
            )
            base_times += step_times(base.path)
            tune_times += step_times(tuned.path)
        config, corpus = open_run(tuned.path)
        padding = batches_of(config, corpus.train, corpus.tokenizer).padding  # type: ignore
    positions = given.rows * given.context
    before, after = statistics.median(base_times), statistics.median(tune_times)
    print(f"pre-training  {1e3 * before:7.1f} ms per step  {positions / before:9,.0f} tokens/s")
    rate = positions * (1 - padding) / after
    print(f"tuning        {1e3 * after:7.1f} ms per step  {rate:9,.0f} tokens/s")
    print(f"padding       {padding:.1%}")
    print(f"ratio         {rate * before / positions:.2f}")


if __name__ == "__main__":
    main()
