"""Where the time of warm encoding goes, in processor time of one thread.

    python benchmarks/encode_profile.py NOVELS --gpt2 FOLDER [--rounds 9]

Splits the text into pieces, and encodes it: the difference is looking pieces up and writing ids. Also reads the text once (a sum
of its bytes). Medians.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.split import PATTERNS, piece_ends


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median processor time of `work`, after a first call."""
    work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("texts", type=Path)
    options.add_argument("--gpt2", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=9)
    given = options.parse_args()
    text = b"\n".join(path.read_bytes() for path in sorted(given.texts.glob("*.txt")))
    tokenizer = load_tokenizer(given.gpt2)
    ends = piece_ends(text, PATTERNS["gpt2"])
    string = text.decode()
    whole = seconds(lambda: tokenizer.encode(string), given.rounds)
    splitting = seconds(lambda: piece_ends(text, PATTERNS["gpt2"]), given.rounds)
    as_bytes = np.frombuffer(text, np.uint8)
    reading = seconds(lambda: as_bytes.sum(dtype=np.uint64), given.rounds)
    for name, found in (("encode", whole), ("split alone", splitting), ("sum of bytes", reading)):
        per_byte, per_piece = 1e9 * found / len(text), 1e9 * found / len(ends)
        print(f"{name:13} {per_byte:5.2f} ns per byte, {per_piece:5.1f} ns per piece")
    n_different = len({text[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])})
    print(
        f"{len(ends):,} pieces, {n_different:,} different, {len(text) / len(ends):.2f} bytes each"
    )


if __name__ == "__main__":
    main()
