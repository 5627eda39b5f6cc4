"""Benchmark commands: bench train, ladder, generate. (`bench tokenizer` is in tokenizer.py.)"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith.cli.console import table
from lmsmith.cli.grammar import Verbs, add_settings, at_least_one, settings_given
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from lmsmith.train.ladder import Pace

COLUMNS = ("ms", "spread", "tokens/s", "MFU", "MB")


def add(verbs: Verbs) -> None:
    train = verbs.verb(
        "bench train",
        _train,
        "time a training step on this machine",
        "lmsmith bench train --preset babygpt --train.batch_size 8",
        usage="lmsmith bench train [--preset NAME] [--n N] [--SETTING VALUE]...",
    )
    train.add_argument("--n", type=at_least_one, default=8, metavar="N", help="steps to time (8)")
    train.add_argument(
        "--seconds",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="time more steps until they have taken S seconds (0)",
    )
    train.add_argument("--json", action="store_true", help="print one JSON object")
    train.add_argument(
        "--memory", action="store_true", help="also measure the peak memory of tensors"
    )
    if verbs.is_for("bench train"):
        add_settings(train, verbs.arguments, out=False)

    ladder = verbs.verb(
        "bench ladder",
        _ladder,
        "time a GPT-2 training step with one speed-up after another switched on",
        "lmsmith bench ladder --device cpu",
    )
    ladder.add_argument(
        "--device",
        default="auto",
        metavar="TEXT",
        help="cuda or cpu; auto: cuda if there is one (auto)",
    )
    ladder.add_argument(
        "--n", type=at_least_one, default=8, metavar="N", help="steps to time per speed-up (8)"
    )

    generate = verbs.verb(
        "bench generate",
        _generate,
        "time text generation: tokens per second by batch size and weight format",
        "lmsmith bench generate --shape 124M",
    )
    generate.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="a run to time; without it: --shape"
    )
    generate.add_argument(
        "--shape",
        default="124M",
        metavar="NAME",
        help="time GPT-2's architecture with random weights: 10M, 30M or 124M (124M)",
    )
    generate.add_argument(
        "--batch", default="1,8,16", metavar="N,N", help="sequences decoded at once (1,8,16)"
    )
    generate.add_argument(
        "--weights",
        default="fp32,bf16,int8",
        metavar="NAMES",
        help="formats of the weights: fp32, bf16, int8 (fp32,bf16,int8)",
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object")


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"{value!r}: expected a number of seconds, 0 or more")


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.ladder import bench_config, machine_in_words, peak_of_steps, time_steps

    config, device = bench_config(settings_given(options))
    pace = time_steps(config, device, n=options.n, least=options.seconds)
    memory = {"peak_tensor_bytes": peak_of_steps(config, device)} if options.memory else {}
    if options.json:
        print(
            to_json(
                {
                    "seconds": pace.seconds,
                    "tokens_per_second": pace.tokens_per_second,
                    "mfu": pace.mfu,
                    **memory,
                }
            )
        )
        return 0
    model, train = config.model, config.train
    console.print(machine_in_words(device))
    console.print(
        f"{config.preset}: {model.describe()}, vocabulary {model.vocab_size:,}; "
        f"{train.batch_size} sequences per step, {train.dtype}"
    )
    table(console, ("", *COLUMNS), [["one step", *_cells(pace)]])
    if memory:
        console.print(f"tensors: {memory['peak_tensor_bytes'] / 1e6:,.1f} MB at most")
    return 0


def _ladder(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.ladder import (
        ACCUMULATED,
        PUBLISHED,
        base_config,
        bench_config,
        climb,
        machine_in_words,
    )

    _, device = bench_config({"train.device": options.device})
    base = base_config(device)
    console.print(machine_in_words(device))
    console.print(
        f"GPT-2 with {base.model.describe()}, vocabulary 50,257; "
        f"{base.train.batch_size} sequences per step; each line keeps the speed-ups above it"
    )
    rows, first = [], 0.0
    for rung, pace in climb(device, n=options.n):
        each = pace.median / (ACCUMULATED if rung.name == "accumulation" else 1)
        first = first or each
        console.print(f"{rung.name:18} {1000 * each:9.1f} ms")
        rows.append([rung.name, *_cells(pace, each), f"{first / each:.2f}", *PUBLISHED[rung.name]])
    console.print()
    table(console, ("", *COLUMNS, "speed-up", "A100", "T4"), rows)
    console.print(
        "MFU: share of the matrix product rate measured on this machine. Accumulation: "
        "milliseconds per micro-batch.\n"
        "A100, T4: published milliseconds of GPT-2 124M, 16 x 1024 tokens (Karpathy's lecture) and "
        "4 x 1024 in float16."
    )
    return 0


def _generate(options: argparse.Namespace, console: Console, started: float) -> int:
    import torch

    from lmsmith.generate.bench import SHAPES, decode_speed, read_rate, shape
    from lmsmith.generate.weights import FORMATS, pack
    from lmsmith.run_folder import load_for_use
    from lmsmith.train.ladder import machine_in_words

    formats, batches = options.weights.split(","), options.batch.split(",")
    if unknown := set(formats) - set(FORMATS):
        raise UsageError(f"--weights {min(unknown)}: expected some of {', '.join(FORMATS)}.")
    if not all(batch.isdigit() and int(batch) for batch in batches):
        raise UsageError(f"--batch {options.batch}: expected numbers such as 1,8,16.")
    if options.shape not in SHAPES:
        raise UsageError(f"--shape {options.shape}: expected one of {', '.join(SHAPES)}.")
    rate = read_rate()
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for name in formats:
        model = load_for_use(options.run)[0] if options.run else shape(options.shape)
        pack(model, name)
        speeds = list(decode_speed(model, [int(b) for b in batches], bytes_per_second=rate))
        found[name] = {str(speed.batch): speed.tokens_per_second for speed in speeds}
        rows += [
            [
                name,
                str(speed.batch),
                f"{speed.tokens_per_second:,.1f}",
                f"{speed.share_of_read_rate:.0%}" if speed.share_of_read_rate else "",
            ]
            for speed in speeds
        ]
    if options.json:
        print(to_json({"read_bytes_per_second": rate, "tokens_per_second": found}))
        return 0
    console.print(machine_in_words(torch.device("cpu")))
    console.print(f"memory is read at {rate / 1e9:.1f} GB/s")
    table(console, ("weights", "batch", "tokens/s", "of the read rate"), rows)
    return 0


def _cells(pace: Pace, each: float = 0.0) -> list[str]:
    spread = (max(pace.seconds) - min(pace.seconds)) / pace.median
    return [
        f"{1000 * (each or pace.median):.1f}",
        f"{spread:.0%}",
        f"{pace.tokens_per_second:,.0f}",
        f"{pace.mfu:.0%}",
        f"{pace.peak_memory_bytes / 1e6:,.0f}",
    ]
