"""Compares the speed of lmsmith's tokenizer with other tokenizers: `lmsmith bench tokenizer`.

Tokenizers that are not installed are skipped (`pip install tiktoken tokenizers rustbpe
gigatoken`). All get the same vocabulary and the same text in memory and run in one process, in
rounds one after the other, so that other load on the machine affects all of them. The result is the
median over the rounds. A fast tokenizer runs twice per round and the second run counts, because the
first one finds the CPU caches filled by the tokenizer before it. "warm" is a tokenizer that has
encoded the text before, "cold" one that has not; the others have no cache. Rows run on one thread
unless their name says otherwise. A tokenizer that returns other ids than lmsmith is an error.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.errors import TokenizerError
from lmsmith.machine.limits import n_cores
from lmsmith.tokens import foreign
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.split import PATTERNS, Pattern, parts_of

Task = Callable[[], Any]  # the measured call

QUICK = 1.0  # seconds: faster tasks run twice per round
PART = 1 << 16  # bytes per text of a batch, of which the others encode one per thread


@dataclass(frozen=True)
class Contender:
    """A tokenizer to measure. `prepare` is not timed and returns the call to time; it runs again
    before each round if `cold`.
    """

    name: str
    prepare: Callable[[], Task]
    cold: bool = False


@dataclass(frozen=True)
class Timing:
    """One contender at one task, medians over the rounds."""

    task: str
    name: str
    seconds: float  # wall time
    cpu_seconds: float  # CPU time of this process, all threads
    megabytes: float
    times: float = 1.0  # wall time relative to the first contender at this task

    @property
    def megabytes_per_second(self) -> float:
        return self.megabytes / self.seconds


def bench_encoding(
    vocabulary: BpeTokenizer, name: str, text: bytes, rounds: int = 5
) -> list[Timing]:
    """Measures encoding of `text` (UTF-8). Raises TokenizerError if a contender returns other ids
    than lmsmith.
    """
    with tempfile.TemporaryDirectory() as folder:
        foreign.save_huggingface(vocabulary, Path(folder))
        contenders = _encoders(vocabulary, text, Path(folder) / "tokenizer.json")
        expected = vocabulary.encode(text)
        for contender in contenders:
            if not np.array_equal(np.asarray(contender.prepare()()), expected):
                raise TokenizerError(
                    f"{contender.name} returns other ids than lmsmith for {name}, so their speeds "
                    f"cannot be compared. Uninstall it to measure the others."
                )
        return _rounds(f"encode {name}", contenders, len(text), rounds)


def bench_learning(text: bytes, vocab_size: int = 10_000, rounds: int = 5) -> list[Timing]:
    """Measures learning a vocabulary from `text` (UTF-8). The other libraries use their own default
    number of threads.
    """
    string = text.decode("utf-8")
    # A small text may not have enough to merge: all learn a vocabulary of the same size.
    vocab_size = learn_bpe([text], vocab_size, pattern="gpt2").vocab_size
    contenders = [
        Contender(
            "lmsmith, 2 threads",
            lambda: lambda: learn_bpe([text], vocab_size, pattern="gpt2", threads=2),
        )
    ]
    contenders.append(
        Contender(
            "lmsmith", lambda: lambda: learn_bpe([text], vocab_size, pattern="gpt2", threads=1)
        )
    )
    if _installed("gigatoken"):
        import gigatoken

        contenders.append(
            Contender(
                "gigatoken",
                lambda: lambda: gigatoken.train_bpe(text, vocab_size, ["<|endoftext|>"]),
            )
        )
    if _installed("rustbpe"):
        import rustbpe

        pattern = PATTERNS["llama3"].regex
        contenders.append(
            Contender(
                "rustbpe",
                lambda: (
                    lambda: rustbpe.Tokenizer().train_from_iterator(
                        [string], vocab_size, pattern=pattern
                    )
                ),
            )
        )
    if _installed("tokenizers"):
        import tokenizers

        def learn() -> None:
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.train_from_iterator(
                string.splitlines(keepends=True),
                tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False),
            )

        contenders.append(Contender("Hugging Face", lambda: learn))
    return _rounds(f"learn {vocab_size:,} entries", contenders, len(text), rounds)


def _encoders(vocabulary: BpeTokenizer, text: bytes, huggingface_file: Path) -> list[Contender]:
    """lmsmith's contenders first, then those of the installed libraries."""
    encoders = _own_encoders(vocabulary, text)
    if _installed("tiktoken"):
        encoders.append(_tiktoken_encoder(vocabulary, text.decode("utf-8")))
    if _installed("gigatoken"):
        encoders += _gigatoken_encoders(text, vocabulary.pattern, huggingface_file)
    if _installed("tokenizers"):
        encoders.append(_huggingface_encoder(vocabulary, text, huggingface_file))
    return encoders


def _own_encoders(vocabulary: BpeTokenizer, text: bytes) -> list[Contender]:
    string = text.decode("utf-8")

    def fresh() -> BpeTokenizer:
        """A tokenizer whose merges are in tables, as the others have them from the start."""
        tokenizer = BpeTokenizer(
            vocabulary.tokens, vocabulary.merges, vocabulary.pattern, vocabulary.special_tokens
        )
        assert tokenizer.vocabulary.tables
        return tokenizer

    known = fresh()  # has encoded no other text

    def warm() -> Task:
        known.encode(text)
        return lambda: known.encode(text)

    def cold() -> Task:
        tokenizer = fresh()
        return lambda: tokenizer.encode(text)

    def two_threads() -> Task:
        known.encode(text, threads=2)
        return lambda: known.encode(text, threads=2)

    return [
        Contender("lmsmith, warm", warm),
        Contender("lmsmith, cold", cold, cold=True),
        Contender("lmsmith, warm, 2 threads", two_threads),
        Contender("lmsmith, warm, from str", lambda: lambda: known.encode(string)),
    ]


def _tiktoken_encoder(vocabulary: BpeTokenizer, string: str) -> Contender:
    import tiktoken

    ranks = {token: i for i, token in enumerate(vocabulary.tokens) if token is not None}
    engine = tiktoken.Encoding(
        "bench",
        pat_str=vocabulary.pattern.regex,
        mergeable_ranks=ranks,
        special_tokens=vocabulary.special_tokens,
    )
    # encode_to_numpy is faster than encode.
    return Contender(
        "tiktoken", lambda: lambda: engine.encode_to_numpy(string, disallowed_special=())
    )


def _gigatoken_encoders(text: bytes, pattern: Pattern, huggingface_file: Path) -> list[Contender]:
    import gigatoken

    def cold() -> Task:
        tokenizer = gigatoken.Tokenizer(str(huggingface_file))
        return lambda: tokenizer.encode(text)

    def warm() -> Task:
        task = cold()
        task()
        return task

    def all_cores() -> Task:
        """The library encodes several texts in parallel, not one."""
        import awkward

        tokenizer = gigatoken.Tokenizer(str(huggingface_file))
        parts = [bytes(part) for part in parts_of(text, PART, pattern)]

        def task() -> object:
            return np.asarray(awkward.flatten(tokenizer.encode_batch(parts, parallel=True)))

        task()
        return task

    return [
        Contender("gigatoken, warm", warm),
        Contender("gigatoken, warm, all cores", all_cores),
        Contender("gigatoken, cold", cold, cold=True),
    ]


def _huggingface_encoder(
    vocabulary: BpeTokenizer, text: bytes, huggingface_file: Path
) -> Contender:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(huggingface_file))
    parts = [bytes(part).decode("utf-8") for part in parts_of(text, PART, vocabulary.pattern)]

    def encode() -> list[int]:
        encodings = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        return list(itertools.chain.from_iterable(encoding.ids for encoding in encodings))

    return Contender("Hugging Face, all cores", lambda: encode)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _rounds(task: str, contenders: list[Contender], n_bytes: int, rounds: int) -> list[Timing]:
    ready = {contender.name: contender.prepare() for contender in contenders}
    seconds: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    before: dict[str, float] = {}
    for _ in range(rounds):
        for contender in contenders:
            run = contender.prepare() if contender.cold else ready[contender.name]
            if not contender.cold and before.get(contender.name, 0.0) < QUICK:
                run()
            start, cpu = time.perf_counter(), time.process_time()
            run()
            before[contender.name] = time.perf_counter() - start
            seconds[contender.name].append((before[contender.name], time.process_time() - cpu))
    timings = []
    for name, pairs in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        timings.append(Timing(task, name, wall, cpu, n_bytes / 1e6))
    return [replace(timing, times=timing.seconds / timings[0].seconds) for timing in timings]


# ---- machine, start-up time, memory --------------------------------------------------------------


def machine() -> str:
    """Returns the processor's name, the number of usable cores, the system and the Python version."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):  # not Linux
        pass
    return f"{name}, {n_cores()} cores, {platform.system()}, Python {platform.python_version()}"


@dataclass(frozen=True)
class StartUp:
    """Seconds in a new process from importing the tokenizer to the first encoded text, and to the
    first learned vocabulary.
    """

    encode: float
    learn: float


def start_up() -> tuple[StartUp, StartUp]:
    """Measures the start-up time with an empty compilation cache, and again with a filled one."""
    code = """
import json, time
start = time.perf_counter()
from lmsmith.tokens.bpe import BpeTokenizer
BpeTokenizer([bytes([byte]) for byte in range(256)], (), "gpt2").encode("some text")
encoded = time.perf_counter() - start
from lmsmith.tokens.bpe_train import learn_bpe
learn_bpe(["some text"], 260, threads=1)
print(json.dumps({"encode": encoded, "learn": time.perf_counter() - start}))
"""
    with tempfile.TemporaryDirectory() as cache:
        times = [
            StartUp(**json.loads(_in_a_process(code, NUMBA_CACHE_DIR=cache))) for _ in range(2)
        ]
    return times[0], times[1]


def learning_memory(path: Path, vocab_size: int = 10_000) -> int:
    """Peak memory, in bytes, of a process that learns from a text file. Not for Windows."""
    code = f"""
import resource, sys
from pathlib import Path
from lmsmith.tokens.bpe_train import learn_bpe
with open({str(path)!r}, "rb") as file:
    learn_bpe([iter(lambda: file.read(1 << 20), b"")], {vocab_size}, threads=2)
status = Path("/proc/self/status")
if status.exists():  # what getrusage says there includes the process that started this one
    print(next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    return int(_in_a_process(code))


def _in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TokenizerError(f"a measuring process failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
