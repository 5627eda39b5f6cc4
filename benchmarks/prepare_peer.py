"""The usual way to tokenize text before training: `datasets.map` with tiktoken on two processes,
ids in a memory map.

    PYTHON benchmarks/prepare_peer.py TEXTS GPT2 OUT

The steps are those of nanoGPT's data/openwebtext/prepare.py, but for text files (one document each)
instead of a downloaded data set. `prepare.py` runs this in a Python with datasets and tiktoken,
which lmsmith does not need. Prints two times as JSON: until everything is imported and the
vocabulary is loaded, and from then on.
"""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import tiktoken  # noqa: E402
from datasets import disable_progress_bars, load_dataset  # noqa: E402
from tiktoken.load import data_gym_to_mergeable_bpe_ranks  # noqa: E402

PROCESSES = 2
SLICES = 1024
END = "<|endoftext|>"


def gpt2(folder: Path) -> tiktoken.Encoding:
    """`tiktoken.get_encoding("gpt2")`, from local files."""
    with tempfile.TemporaryDirectory() as folder_of_ranks:
        merges = Path(folder_of_ranks, "vocab.bpe")
        merges.write_text(
            "#version: 0.2\n" + (folder / "merges.txt").read_text(encoding="utf-8"),
            encoding="utf-8",
        )
        ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(folder / "vocab.json"))
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding(
        "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: len(ranks)}
    )


encoding = gpt2(Path(sys.argv[2]))
start = time.perf_counter() - BEGAN


def encoded(example: dict[str, str]) -> dict[str, object]:
    ids = [*encoding.encode_ordinary(example["text"]), encoding.eot_token]
    return {"ids": ids, "length": len(ids)}


def main() -> None:
    began = time.perf_counter()
    disable_progress_bars()
    out = Path(sys.argv[3])
    files = [str(path) for path in sorted(Path(sys.argv[1]).glob("*.txt"))]
    texts = load_dataset(
        "text", data_files=files, sample_by="document", cache_dir=str(out / "cache")
    )["train"]
    splits = texts.train_test_split(test_size=max(1, len(texts) // 100), seed=1)
    n_tokens = 0
    for name, split in splits.map(encoded, remove_columns=["text"], num_proc=PROCESSES).items():
        total = int(np.sum(split["length"], dtype=np.uint64))
        ids = np.memmap(out / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(total,))
        position, n_slices = 0, min(SLICES, len(split))
        for number in range(n_slices):
            part = split.shard(num_shards=n_slices, index=number, contiguous=True).with_format(
                "numpy"
            )
            part_ids = np.concatenate(part["ids"])
            ids[position : position + len(part_ids)] = part_ids
            position += len(part_ids)
        ids.flush()
        n_tokens += total
    work = time.perf_counter() - began
    print(json.dumps({"start": start, "work": work, "n_tokens": n_tokens}))


if __name__ == "__main__":
    main()
