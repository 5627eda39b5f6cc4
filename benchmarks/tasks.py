"""HellaSwag with the 124M GPT-2 shape: lmsmith's tasks beside lm-evaluation-harness with transformers.

    python benchmarks/tasks.py --peer PYTHON_WITH_LM_EVAL --data FOLDER --vocab FOLDER [--limit 100]

`--data` has hellaswag.jsonl, `--vocab` GPT-2's vocab.json and merges.txt. The weights are random:
they cost the same as trained ones. Both programs get the same texts, and log-likelihoods are
compared. The harness runs once with each of several batch sizes, and its fastest counts; its time
is that of `HFLM.loglikelihood` alone, ours that of the complete task. Rounds alternate.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="python with lm-eval, transformers")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0, help="items before the first that counts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-sizes", default="1,8", help="of the harness")
    parser.add_argument("--folder", type=Path, help="where the model is kept")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return WORK[given.work](given)
    folder = given.folder or Path(tempfile.mkdtemp())
    given.folder = folder
    if not (folder / "hf").is_dir():
        start(given, given.peer, "make")
        start(given, sys.executable, "import")
    sizes = [int(size) for size in given.batch_sizes.split(",")]
    ours: list[float] = []
    theirs: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(given.rounds):
        mine = start(given, sys.executable, "lmsmith")
        ours.append(mine["seconds"])
        print(f"lmsmith {mine['seconds']:.1f} s", flush=True)
        for size in sizes:
            other = start(given, given.peer, f"peer {size}")
            theirs[size].append(other["seconds"])
            off = max(abs(a - b) for a, b in zip(mine["nats"], other["nats"], strict=True))
            print(f"harness, batch size {size}: {other['seconds']:.1f} s; largest difference {off}")
    best = min(statistics.median(times) for times in theirs.values())
    print(f"ratio {best / statistics.median(ours):.2f} (the harness's time over ours)")


def start(given: argparse.Namespace, python: str, work: str) -> Any:
    """Runs one part in a process of its own; what it prints last is JSON."""
    command = [python, __file__, "--work", work.split()[0], "--limit", str(given.limit)]
    command += ["--skip", str(given.skip)]
    command += ["--data", given.data, "--vocab", given.vocab, "--folder", given.folder]
    command += ["--batch-sizes", work.partition(" ")[2] or "1"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def make(given: argparse.Namespace) -> None:
    """A Hugging Face folder with random weights and GPT-2's tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(given.folder / "hf")
    lines = (given.vocab / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    vocab = json.loads((given.vocab / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)
    fast.save_pretrained(given.folder / "hf")


def import_run(given: argparse.Namespace) -> None:
    import lmsmith

    lmsmith.import_model(given.folder / "hf", out=given.folder / "run")


def lmsmith_tasks(given: argparse.Namespace) -> None:
    import lmsmith

    lm = lmsmith.load(given.folder / "run")
    lines = (given.data / "hellaswag.jsonl").read_text(encoding="utf-8").splitlines(True)
    items = given.folder / "hellaswag.jsonl"
    items.write_text("".join(lines[given.skip :][: given.limit]), encoding="utf-8")
    options = {"tasks": ["hellaswag"], "task_data": items, "bos": False}
    lmsmith.evaluate(lm, limit=2, **options)  # what is loaded and compiled once
    began = time.perf_counter()
    found = lmsmith.evaluate(lm, **options)
    seconds = time.perf_counter() - began
    nats = [answer.log_likelihood for item in found[0].items for answer in item.answers]
    texts = [item.item.pair(index) for item in found[0].items for index in range(4)]
    (given.folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    print(json.dumps({"seconds": seconds, "nats": nats}))


def harness(given: argparse.Namespace) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(given.folder / "hf"), batch_size=int(given.batch_sizes), device="cpu")
    texts = json.loads((given.folder / "texts.json").read_text(encoding="utf-8"))
    requests = [
        Instance("loglikelihood", {}, tuple(text), index) for index, text in enumerate(texts)
    ]
    lm.loglikelihood(requests[:8], disable_tqdm=True)
    began = time.perf_counter()
    found = lm.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "nats": [nats for nats, _ in found]}))


WORK = {"make": make, "import": import_run, "lmsmith": lmsmith_tasks, "peer": harness}

if __name__ == "__main__":
    main()
