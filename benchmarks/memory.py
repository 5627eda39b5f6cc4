"""Peak memory of commands and of their phases.

    python benchmarks/memory.py demo [--steps 24]       the demo, phase by phase
    python benchmarks/memory.py train [--dtype float32] steps of 124M beside the plan's prediction
    python benchmarks/memory.py load                    a model for use beside the size of its file

Linux only. Each measurement is a process of its own. Its resident memory (RSS) is read every five
milliseconds, and without the pages of mapped files: libraries, which the kernel can drop at any
time. The rest is called anonymous: the heap. Child processes are watched, too.

`train` and `load` compare with the same process before the model is built or read: the
interpreter, torch and lmsmith; for `load` after a tiny model, so that the code is in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import phases

MB = 1e6

PEAK = """
def peak(reset=False):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")  # sets the peak to the present size
    return 1024 * int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
"""
TRAIN = (
    PEAK
    + """
import sys
import torch
from lmsmith.config.presets import preset
from lmsmith.machine.heap import keep_freed_memory
from lmsmith.plan.memory import memory
from lmsmith.train.ladder import time_steps
(dtype,) = sys.argv[1:]
config = preset("gpt2").changed({
    "model.vocab_size": 50257, "model.n_layer": 12,
    "model.n_head": 12, "model.d_model": 768, "model.context_length": 1024,
    "train.batch_size": 2, "train.micro_batch_size": 1, "train.dtype": dtype,
    "train.matmul": "default", "train.compile": "no"}, where="the benchmark")
keep_freed_memory()
before = peak(reset=True)
time_steps(config, torch.device("cpu"), n=1)
print(config.neural.n_parameters(), memory(config).n_bytes, before, peak())
"""
)
SAVE = """
import sys
from pathlib import Path
import torch
from lmsmith.checkpoint import save_model
from lmsmith.config.presets import preset
for name, n_layer, n_head, d_model in ("large", 12, 12, 768), ("small", 1, 1, 16):
    config = preset("gpt2").changed({
        "model.vocab_size": 50257, "model.n_layer": n_layer, "model.n_head": n_head,
        "model.d_model": d_model, "model.context_length": 1024}, where="the benchmark").model
    model = config.build()
    model.initialise(torch.Generator().manual_seed(1))
    folder = Path(sys.argv[1]) / name
    save_model(folder, dict(model.named_parameters()), {"model": vars(config)})
"""
LOAD = (
    PEAK
    + """
import sys
from pathlib import Path
import lmsmith.generate.text_model
from lmsmith.generate.weights import load_packed
load_packed(Path(sys.argv[1]) / "small", sys.argv[2])  # loads the code that is used
before = peak(reset=True)
model, _ = load_packed(Path(sys.argv[1]) / "large", sys.argv[2])
print(before, peak(), sum(p.numel() * p.element_size() for p in model.parameters()))
"""
)


@dataclass
class Watched:
    """Memory of a process over time. Times are those of time.monotonic()."""

    command: str
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(self.resident, default=0)

    @property
    def peak_anonymous(self) -> int:
        return max(self.anonymous, default=0)


def watch(command: list[str], **options: Any) -> list[Watched]:
    """Runs a command; returns its processes, the largest first. Exits if the command fails."""
    process = subprocess.Popen(command, **options)
    found: dict[int, Watched] = {}

    def look() -> None:
        while process.poll() is None:
            for pid in _tree(process.pid):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    _add(found, pid)
            time.sleep(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} failed")
    watcher.join()
    return sorted(found.values(), key=lambda one: -one.peak)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _add(found: dict[int, Watched], pid: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    _, resident, of_files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    if pid not in found:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found[pid] = Watched(" ".join(words)[-60:])
    found[pid].times.append(time.monotonic())
    found[pid].resident.append(page * resident)
    found[pid].anonymous.append(page * (resident - of_files))


def by_phase(process: Watched, log: Path) -> None:
    """Prints the peak of each phase, in the order in which they first begin."""
    print(f"{'phase':24} {'calls':>6} {'s':>7} {'before':>8} {'peak':>8} {'after':>8}  MB")
    samples = list(zip(process.times, process.resident, strict=True))
    for name, times in phases.read(log).items():
        inside = [size for at, size in samples if any(a <= at <= b for a, b in times)]
        before = [size for at, size in samples if at < times[0][0]]
        seconds = sum(b - a for a, b in times)
        first, peak = before[-1] if before else 0, max(inside, default=0)
        last = inside[-1] if inside else 0
        sizes = "".join(f" {size / MB:8.0f}" for size in (first, peak, last))
        print(f"{name:24} {len(times):6} {seconds:7.2f}{sizes}")


def demo(steps: int) -> None:
    """The peak of `lmsmith demo`. `steps`: its length; 0: its usual 1.8 minutes."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "phases"
        minutes = "30" if steps else "1.8"
        command = phases.command(log, "demo", "--out", f"{folder}/demo", "--minutes", minutes)
        limit = {phases.STEPS: str(steps)} if steps else {}
        processes = watch(command, stdout=subprocess.DEVNULL, env=os.environ | limit)
        by_phase(processes[0], log)
        for one in processes[:3]:
            print(
                f"peak {one.peak / MB:.0f} MB, anonymous {one.peak_anonymous / MB:.0f} MB: "
                f"{one.command}"
            )


def train(dtype: str) -> None:
    """Steps of GPT-2 124M at micro-batch 1, of two, beside the plan's prediction for tensors."""
    n, predicted, before, peak = _numbers(TRAIN, dtype)
    print(f"{n:,} parameters, {dtype}, 2 x 1024 tokens in micro-batches of 1")
    print(f"predicted {predicted / MB:,.0f} MB of tensors; before {before / MB:,.0f} MB")
    print(
        f"peak {peak / MB:,.0f} MB: {(peak - before) / MB:,.0f} MB beyond the process before, "
        f"{(peak - before) / predicted:.3f} times the prediction"
    )


def load() -> None:
    """Loading GPT-2 124M for use, in each format of weights."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", SAVE, folder], check=True)
        file = (Path(folder) / "large" / "model.safetensors").stat().st_size
        print(f"file {file / MB:,.0f} MB")
        for weights in ("fp32", "bf16", "int8"):
            before, peak, size = _numbers(LOAD, folder, weights)
            print(
                f"{weights}: the model takes {size / MB:,.0f} MB; before {before / MB:,.0f} MB, "
                f"peak {peak / MB:,.0f} MB: {(peak - before) / size:.3f} times the model, "
                f"{(peak - before) / file:.3f} times the file; "
                f"{peak / (before + size):.3f} times process and model together"
            )


def _numbers(program: str, *arguments: str) -> list[int]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [round(float(word)) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("demo", "train", "load"))
    parser.add_argument("--steps", type=int, default=0, help="of the demo; 0: its usual time")
    parser.add_argument("--dtype", default="float32", help="of the products while training")
    options = parser.parse_args()
    if options.what == "demo":
        demo(options.steps)
    elif options.what == "train":
        train(options.dtype)
    else:
        load()


if __name__ == "__main__":
    main()
