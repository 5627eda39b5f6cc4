"""How fast this tokenizer is beside those that a user would install instead: `lmsmith bench
tokenizer`.

Peers that are not installed are left out (`pip install tiktoken tokenizers rustbpe gigatoken`). All
are given the same vocabulary and the same text in memory, in one process, in rounds one after the
other, so that what else the machine does hits all of them; of the rounds the median counts. Whoever
is quick runs twice and the second time counts, for the first one finds the processor's caches full
of what the one before it left. "warm" is a tokenizer that has encoded the text before, "cold" one
that has seen none; the others remember nothing. All but the rows that say so run on one thread.
Whoever gives other ids than lmsmith is not measured but reported.
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
from lmsmith.tokens.split import PATTERNS, parts_of

Task = Callable[[], Any]  # what is measured

QUICK = 1.0  # seconds
PART = 1 << 16  # bytes of the parts that Hugging Face is given, for it to use its threads


@dataclass(frozen=True)
class Contender:
    """`prepare`, by no clock, gives what is then measured; anew for each round where it is to be
    cold.
    """

    name: str
    prepare: Callable[[], Task]
    cold: bool = False


@dataclass(frozen=True)
class Timing:
    """One contender at one task, medians over the rounds."""

    task: str
    name: str
    seconds: float  # by the wall clock
    cpu_seconds: float  # of this process, all threads together
    megabytes: float
    times: float = (
        1.0  # how many times as long as the first contender at this task, by the wall clock
    )

    @property
    def megabytes_per_second(self) -> float:
        return self.megabytes / self.seconds


def bench_encoding(
    vocabulary: BpeTokenizer, name: str, text: bytes, rounds: int = 5
) -> list[Timing]:
    """All contenders encode `text`, which is UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        foreign.save_huggingface(vocabulary, Path(folder))
        contenders = _encoders(vocabulary, text, Path(folder) / "tokenizer.json")
        wanted = vocabulary.encode(text)
        for contender in contenders:
            if not np.array_equal(np.asarray(contender.prepare()()), wanted):
                raise TokenizerError(
                    f"{contender.name} gives other ids for {name} than lmsmith: nothing to compare."
                )
        return _rounds(f"encode {name}", contenders, len(text), rounds)


def bench_learning(text: bytes, vocab_size: int = 10_000, rounds: int = 5) -> list[Timing]:
    """All contenders learn a vocabulary from `text`, on two threads where they use any."""
    string = text.decode("utf-8")
    vocab_size = learn_bpe(
        [text], vocab_size, pattern="gpt2"
    ).vocab_size  # as many as there are to be learnt
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
            made = tokenizers.Tokenizer(tokenizers.models.BPE())
            made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.train_from_iterator(
                string.splitlines(keepends=True),
                tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False),
            )

        contenders.append(Contender("Hugging Face", lambda: learn))
    return _rounds(f"learn {vocab_size:,} entries", contenders, len(text), rounds)


def _encoders(vocabulary: BpeTokenizer, text: bytes, huggingface_file: Path) -> list[Contender]:
    """lmsmith first, then the peers that are installed."""
    found = _own_encoders(vocabulary, text)
    if _installed("tiktoken"):
        found.append(_tiktoken_encoder(vocabulary, text.decode("utf-8")))
    if _installed("gigatoken"):
        found += _gigatoken_encoders(text, huggingface_file)
    if _installed("tokenizers"):
        found.append(_huggingface_encoder(vocabulary, text, huggingface_file))
    return found


def _own_encoders(vocabulary: BpeTokenizer, text: bytes) -> list[Contender]:
    string = text.decode("utf-8")

    def warm() -> Task:
        vocabulary.encode(text)
        return lambda: vocabulary.encode(text)

    def cold() -> Task:
        made = BpeTokenizer(
            vocabulary.tokens, vocabulary.merges, vocabulary.pattern, vocabulary.special_tokens
        )
        made.encode("")
        return lambda: made.encode(text)

    def two_threads() -> Task:
        vocabulary.encode(text, threads=2)
        return lambda: vocabulary.encode(text, threads=2)

    return [
        Contender("lmsmith, warm", warm),
        Contender("lmsmith, cold", cold, cold=True),
        Contender("lmsmith, warm, 2 threads", two_threads),
        Contender("lmsmith, warm, from str", lambda: lambda: vocabulary.encode(string)),
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


def _gigatoken_encoders(text: bytes, huggingface_file: Path) -> list[Contender]:
    import gigatoken

    def cold() -> Task:
        made = gigatoken.Tokenizer(str(huggingface_file))
        return lambda: made.encode(text)

    def warm() -> Task:
        task = cold()
        task()
        return task

    return [
        Contender("gigatoken, warm", warm),
        Contender("gigatoken, cold", cold, cold=True),
    ]


def _huggingface_encoder(
    vocabulary: BpeTokenizer, text: bytes, huggingface_file: Path
) -> Contender:
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(huggingface_file))
    parts = [bytes(part).decode("utf-8") for part in parts_of(text, PART, vocabulary.pattern)]

    def encode() -> list[int]:
        found = made.encode_batch_fast(parts, add_special_tokens=False)
        return list(itertools.chain.from_iterable(encoded.ids for encoded in found))

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
    for name, some in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*some, strict=True))
        timings.append(Timing(task, name, wall, cpu, n_bytes / 1e6))
    return [replace(timing, times=timing.seconds / timings[0].seconds) for timing in timings]


# ---- the machine, starting up, memory ------------------------------------------------------------


def machine() -> str:
    """The processor in words."""
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
    """Seconds from importing the tokenizer to the first ids in a new process, and to a first
    learnt vocabulary.
    """

    encode: float
    learn: float


def start_up() -> tuple[StartUp, StartUp]:
    """With nothing compiled yet, and after that."""
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
        found = [
            StartUp(**json.loads(_in_a_process(code, NUMBA_CACHE_DIR=cache))) for _ in range(2)
        ]
    return found[0], found[1]


def learning_memory(path: Path, vocab_size: int = 10_000) -> int:
    """Peak memory, in bytes, of a process that learns from a text file. Not on Windows."""
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
        raise TokenizerError(
            f"a process for measuring failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return done.stdout
