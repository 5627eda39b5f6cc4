"""Speed of turning text files into token shards with GPT-2's vocabulary: lmsmith, and
`datasets.map` with tiktoken.

    python -m venv PEER && PEER/bin/pip install datasets tiktoken
    python benchmarks/prepare.py NOVELS --gpt2 FOLDER --peer PEER/bin/python [--copies 1 10] [--rounds 5]

NOVELS is a folder of .txt files; FOLDER has GPT-2's vocab.json and merges.txt. Each round runs
both, in turn, as separate commands with two workers. Reports medians for the complete command and
without start-up (imports, loading the vocabulary and compiled code), which dominates for small
texts. Memory is the peak of all processes together, with shared pages divided among them (PSS;
Linux only). With --copies, the texts are also repeated, each copy with a different ending.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

WORKERS = 2


@dataclass
class Run:
    whole: float  # seconds
    work: float
    n_tokens: int
    memory: float  # MB
    cpu: float  # seconds of all processes


def main() -> None:
    if sys.argv[1] == "--ours":
        return ours(*sys.argv[2:])
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("texts", type=Path)
    options.add_argument("--gpt2", type=Path, required=True)
    options.add_argument("--peer", help="a Python with datasets and tiktoken")
    options.add_argument("--copies", type=int, nargs="+", default=[1])
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    commands = {"lmsmith": [sys.executable, __file__, "--ours"]}
    if given.peer:
        commands["datasets and tiktoken"] = [
            given.peer,
            str(Path(__file__).with_name("prepare_peer.py")),
        ]
    for n_copies in given.copies:
        with tempfile.TemporaryDirectory() as place:
            megabytes = copy(given.texts, n_copies, Path(place, "texts")) / 1e6
            runs: dict[str, list[Run]] = {name: [] for name in commands}
            for number in range(given.rounds):
                for name, command in commands.items():
                    out = Path(place, f"{name}-{number}")
                    out.mkdir()
                    runs[name].append(
                        run([*command, str(Path(place, "texts")), str(given.gpt2), str(out)])
                    )
                    shutil.rmtree(out)
        print(f"{megabytes:.1f} MB, medians of {given.rounds} rounds:\n")
        table(runs, megabytes)


def copy(texts: Path, n_copies: int, to: Path) -> int:
    """Copies the texts; returns the number of bytes."""
    to.mkdir()
    n_bytes = 0
    for number in range(n_copies):
        for path in sorted(texts.glob("*.txt")):
            data = path.read_bytes() + f"\nCopy {number} of {path.name}.\n".encode() * (
                n_copies > 1
            )
            n_bytes += (to / f"{number}-{path.name}").write_bytes(data)
    return n_bytes


def run(command: list[str]) -> Run:
    """Runs a command whose last line of output is JSON."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    peak, cpu = [0], dict[int, float]()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], memory(process.pid, cpu))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    result = json.loads(out.strip().splitlines()[-1])
    return Run(seconds, result["work"], result["n_tokens"], peak[0] / 1e6, sum(cpu.values()))


def memory(root: int, cpu: dict[int, float]) -> int:
    """Bytes of memory used by a process and all its descendants. Writes the processor time of each
    to `cpu`, in seconds.
    """
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except (OSError, ValueError):
            continue  # the process has ended
    ours = {root}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = 0
    for process in ours:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            cpu[process] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def table(runs: dict[str, list[Run]], megabytes: float) -> None:
    first = None
    print(
        "| | whole command | MB/s | times | without start | MB/s | times | memory | tokens | CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, entries in runs.items():
        whole, work, cpu = (
            statistics.median(getattr(each, kind) for each in entries)
            for kind in ("whole", "work", "cpu")
        )
        peak = max(each.memory for each in entries)
        first = first or (whole, work)
        print(
            f"| {name} | {whole:.2f} s | {megabytes / whole:.1f} | {whole / first[0]:.2f} "
            f"| {work:.2f} s | {megabytes / work:.1f} | {work / first[1]:.2f} | {peak:.0f} MB "
            f"| {entries[0].n_tokens:,} | {cpu:.2f} s |"
        )
    print()


def ours(texts: str, gpt2: str, out: str) -> None:
    """Runs `lmsmith data prepare`, timed from after the vocabulary is loaded."""
    from lmsmith.data.prepare.build import build_shards
    from lmsmith.tokens.files import load_tokenizer

    tokenizer = load_tokenizer(gpt2)
    tokenizer.encode("a word")
    began = time.perf_counter()
    manifest = build_shards([texts], Path(out, "shards"), tokenizer=tokenizer, workers=WORKERS)
    work = time.perf_counter() - began
    print(
        json.dumps(
            {"work": work, "n_tokens": sum(split.n_tokens for split in manifest.splits.values())}
        )
    )


if __name__ == "__main__":
    main()
