"""Supervised fine-tuning against pre-training: tokens per second of the same model and length.

    python benchmarks/tune.py [--steps 60] [--preset llama] [--context 256] [--rows 8]

Prepares a pre-training run on generated stories and a tuning run (`lmsmith tune`) of its model on
the conversations of `lmsmith demo --chat`, with the same optimizer, rows per batch and context. Then
both models make steps in turn, so that a change of machine speed affects both. Tokens are all that
the model reads, learned or not, without padding. Prints the median time of a step of each, the
padding that is left after packing, and the ratio of the rates. Goals: a ratio of at least 0.9, and
at most 5% padding. Takes about a minute.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import lmsmith
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.batches.windows import AnyBatches, tokens_read
from lmsmith.distributed.ranks import Ranks
from lmsmith.run_folder import open_run
from lmsmith.text.little_questions import write_little_conversations, write_little_texts
from lmsmith.text.stories import write_stories
from lmsmith.train.device import set_up_process, survey
from lmsmith.train.loop import new_model
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

WARM = 5  # steps that are not counted
N_CHATS = 3000


def prepared(folder: Path, given: argparse.Namespace) -> tuple[Path, Path]:
    """A pre-training run and a tuning run of one step each."""
    model = {
        "model.n_layer": 4,
        "model.d_model": 192,
        "model.n_head": 3,
        "model.context_length": given.context,
    }
    common = {"train.batch_size": given.rows, "data.validation_fraction": 0.01}
    sources = [folder / "stories.jsonl", folder / "little.jsonl"]
    write_stories(sources[0], 1_000_000, 1)
    write_little_texts(sources[1], 1000, 1)
    write_little_conversations(folder / "chats.jsonl", N_CHATS, 1)
    base = lmsmith.train(
        sources,
        out=folder / "base",
        preset=given.preset,
        steps=1,
        settings=model | common | {"tokenizer": "bpe:2048"},
        progress=False,
    )
    same = common | {"optim.name": base.config.optim.name}
    tuned = lmsmith.tune(
        base, folder / "chats.jsonl", out=folder / "chat", steps=1, settings=same, progress=False
    )
    return base.path, tuned.path


@contextmanager
def stepping(run: Path) -> Iterator[tuple[AnyBatches, Callable[[int], float]]]:
    """The batches of a run, and a function that makes step n of a new model of its config and
    returns the seconds.
    """
    config, corpus = open_run(run)
    batches = batches_of(config, corpus.train, corpus.tokenizer)
    model = new_model(config, torch.device(config.train.device), Ranks())
    model.train()
    replica = Replica(model, config)

    def step(n: int) -> float:
        began = time.perf_counter()
        train_step(replica, ahead, n, n_steps=10_000)
        return time.perf_counter() - began

    with ReadAhead(batches, replica.micro_batches) as ahead:
        yield batches, step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="counted steps of each (60)")
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = prepared(Path(place), given)
        set_up_process(survey(open_run(runs[0])[0]))
        with stepping(runs[0]) as (texts, pre_train), stepping(runs[1]) as (chats, tune):
            seconds = [(pre_train(n), tune(n)) for n in range(WARM + given.steps)][WARM:]
            counted = range(WARM, WARM + given.steps)
            tokens = [(tokens_read(texts, n), tokens_read(chats, n)) for n in counted]
            learned = sum(chats.n_targets(n) for n in counted) / sum(chat for _, chat in tokens)
        assert isinstance(chats, PackedConversations)
        padding = chats.padding
    rates = []
    for name, side in (("pre-training", 0), ("tuning", 1)):
        each = [one[side] for one in seconds]
        per_step = [n[side] / s for n, s in zip(tokens, each, strict=True)]
        rates.append(statistics.median(per_step))
        print(f"{name:<12}  {1e3 * statistics.median(each):7.1f} ms per step", end="")
        print(f"  {rates[-1]:9,.0f} tokens/s" + (f" ({learned:.0%} learned)" if side else ""))
    print(f"padding       {padding:.1%}")
    print(f"ratio         {rates[1] / rates[0]:.2f}")


if __name__ == "__main__":
    main()
