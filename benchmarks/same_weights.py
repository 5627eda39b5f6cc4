"""Trains short runs of every kind and compares the SHA-256 of their weights between two checkouts.

    git worktree add ../before COMMIT
    python benchmarks/same_weights.py --code ../before --write before.json
    python benchmarks/same_weights.py --against before.json

A change that must not change behaviour must keep these hashes. They differ between machines, so run
both sides on the same one. `--keep FOLDER` keeps the run folders, to test whether a later version
still loads, resumes and generates from them.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXACT = "--train.matmul default --train.threads 1 --train.dtype float32"
TINY = (
    "--model.n_layer 2 --model.d_model 32 --model.n_head 2 --model.context_length 32 "
    "--train.batch_size 4"
)
RECURRENT = "--model.n_layer 1 --model.d_model 32 --model.context_length 32 --train.batch_size 4"
STEPS = "--steps 40 --train.eval_every 15 --train.save_every 20"

RUNS = {
    # name: (processes, sources, options)
    "modern": (1, "stories.jsonl", f"{TINY} --model.ngram_table_size 512 {STEPS}"),
    "gpt2": (1, "stories.jsonl", f"--preset gpt2 {TINY} --model.dropout 0.1 {STEPS}"),
    "llama": (
        1,
        "stories.jsonl",
        f"--preset llama {TINY} --model.n_kv_head 1 --train.micro_batch_size 3 {STEPS}",
    ),
    "bpe": (1, "stories.jsonl", f"--tokenizer bpe:400 {TINY} {STEPS}"),
    "lstm": (1, "stories.jsonl", f"--preset lstm {RECURRENT} {STEPS}"),
    "gru-carried": (
        1,
        "stories.jsonl",
        f"--preset gru {RECURRENT} --train.carry_state yes {STEPS}",
    ),
    "ngram": (1, "stories.jsonl", "--preset ngram --model.ngram_order 4"),
    "reference": (
        1,
        "stories.jsonl",
        f"--engine reference --preset gpt2 {TINY} --steps 12 --train.eval_every 6",
    ),
    "packed": (1, "stories.jsonl", f"--preset llama {TINY} --data.documents packed {STEPS}"),
    "rows": (1, "stories.jsonl", f"--preset llama {TINY} --data.documents rows {STEPS}"),
    "mixture": (1, "mixture.toml", f"--preset llama {TINY} {STEPS}"),
    "warm-up": (
        1,
        "stories.jsonl",
        f"--preset llama {TINY} --train.batch_size 8 --train.batch_start 2 --on-spike skip {STEPS}",
    ),
    "float64": (
        1,
        "stories.jsonl",
        f"--preset llama {TINY} --train.dtype float64 --optim.name sgd {STEPS}",
    ),
    "two-ranks": (2, "stories.jsonl", f"--preset llama {TINY} {STEPS}"),
}


def write_texts(folder: Path) -> None:
    """Writes two sources and a recipe that mixes them; always the same."""
    generator = random.Random(7)
    words = shlex.split(
        "the a one cat dog bird child saw took lost found hat ball house at home again"
    )

    def sentence() -> str:
        return " ".join(generator.choices(words, k=generator.randint(3, 9))).capitalize() + "."

    def texts(n: int) -> str:
        lines = (" ".join(sentence() for _ in range(generator.randint(2, 8))) for _ in range(n))
        return "".join(json.dumps({"text": text}) + "\n" for text in lines)

    (folder / "stories.jsonl").write_text(texts(600))
    (folder / "more.jsonl").write_text(texts(200))
    sources = "".join(
        f'[[data.source]]\npath = "{name}"\nweight = {weight}\n'
        for name, weight in (("stories.jsonl", 0.7), ("more.jsonl", 0.3))
    )
    (folder / "mixture.toml").write_text('tokenizer = "char"\n' + sources)


def train(code: Path, folder: Path, name: str) -> Path:
    """Trains one run with the package of checkout `code`. Raises CalledProcessError."""
    n, sources, options = RUNS[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command = [
        sys.executable,
        *(launcher if n > 1 else []),
        *("-m", "lmsmith", "train", sources, "--out", name),
        *shlex.split(options if name == "ngram" else f"{EXACT} {options}"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{name} failed:\n{result.stdout}{result.stderr}")
    return folder / name


def hash_of(run: Path) -> str:
    """SHA-256 of the names and bytes of all tensors in RUN/model."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, array in sorted(load_file(run / "model" / "model.safetensors").items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout whose package is used")
    parser.add_argument("--only", nargs="+", choices=RUNS, help="only these runs")
    parser.add_argument("--write", type=Path, help="write the hashes to this file")
    parser.add_argument("--against", type=Path, help="compare with the hashes in this file")
    parser.add_argument("--keep", type=Path, help="keep the run folders in this folder")
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    hashes, differing = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder)
        for name in options.only or RUNS:
            hashes[name] = hash_of(train(options.code.resolve(), folder, name))
            same = before.get(name, hashes[name]) == hashes[name]
            differing += [] if same else [name]
            print(f"{name:12} {hashes[name][:16]}  {'' if same else 'DIFFERS'}", flush=True)
    if options.write:
        options.write.write_text(json.dumps(hashes, indent=1) + "\n")
    if differing:
        sys.exit(f"{len(differing)} of {len(hashes)} differ: {', '.join(differing)}")


if __name__ == "__main__":
    main()
