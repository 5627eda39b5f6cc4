"""Studies: false verdicts of A/A studies, what pairing gives, and two runs at once against one.

    python benchmarks/studies.py TEXT [--studies 20] [--seeds 3] [--only a-a|pairing|speed]

- A/A: real studies of two arms that differ only in their seeds. Any verdict is a false one; at most
  5 % of the studies may have one.
- Pairing: the variance of the difference between two arms (with and without norm gains) over the
  same seeds, as a share of the sum of the variances of the arms.
- Two at once: the tokens per second of two runs of one thread each, together, over those of one run
  alone. The machine must be otherwise idle.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from lmsmith.study.plan import against_itself, read_study
from lmsmith.study.run import run_study

STUDY = """
question = "Do gains in the norms help?"
sources = ["text"]
seeds = {seeds}
budget.tokens = {tokens}

[base]
preset = "llama"
tokenizer = "byte"
train = {{batch_size = 16, dtype = "float32", matmul = "default", eval_every = 100000}}
model = {{n_layer = 1, n_head = 2, d_model = {width}, context_length = 32}}
data = {{validation_fraction = 0.05}}

[arms.gains]

[arms."no gains".model]
norm_gain = false
"""


def study_file(folder: Path, text: Path, seeds: str, tokens: int, width: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.toml"
    file.write_text(
        STUDY.format(seeds=seeds, tokens=tokens, width=width).replace(
            '["text"]', f'["{text.resolve()}"]'
        )
    )
    return file


def false_verdicts(text: Path, folder: Path, n_studies: int, n_seeds: int) -> None:
    n_false, deviations = 0, []
    for i in range(n_studies):
        seeds = str([100 * i + k for k in range(n_seeds)])
        study = read_study(study_file(folder / f"a-a-{i}", text, seeds, 20_000, 16))
        studied = run_study(against_itself(study), folder / f"a-a-{i}" / "out")
        (verdict,) = studied.verdicts
        n_false += verdict.shown
        deviations.append(verdict.paired.deviation)
        print(f"A/A {i + 1}: {verdict}", flush=True)
    print(
        f"{n_false} false verdicts in {n_studies} A/A studies; differences between two seeds have a "
        f"standard deviation of {statistics.fmean(deviations):.4f} bits per byte"
    )


def pairing(text: Path, folder: Path, n_seeds: int) -> None:
    study = read_study(study_file(folder / "pairing", text, str(n_seeds), 20_000, 16))
    studied = run_study(study, folder / "pairing" / "out")
    values = {
        arm.name: [r.value for r in studied.results if r.arm == arm.name and r.value is not None]
        for arm in study.arms
    }
    a, b = values.values()
    paired = statistics.variance([x - y for x, y in zip(a, b, strict=True)])
    unpaired = statistics.variance(a) + statistics.variance(b)
    print(f"pairing: variance of the difference {paired / unpaired:.2f} of that of unpaired arms")


def two_at_once(text: Path, folder: Path) -> None:
    def tokens_per_second(at_once: int) -> float:
        place = folder / f"speed-{at_once}"
        study = read_study(study_file(place, text, "[1, 2]", 1_000_000, 64))
        began = time.monotonic()
        studied = run_study(study, place / "out", at_once=at_once)
        return sum(result.tokens for result in studied.results) / (time.monotonic() - began)

    one, two = tokens_per_second(1), tokens_per_second(2)
    print(
        f"tokens per second, start-up included: one run at a time {one:,.0f}, two {two:,.0f} "
        f"({two / one:.2f} times)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["a-a", "pairing", "speed"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="studies-"))
    try:
        if options.only in (None, "speed"):
            two_at_once(options.text, folder)
        if options.only in (None, "pairing"):
            pairing(options.text, folder, 12)
        if options.only in (None, "a-a"):
            false_verdicts(options.text, folder, options.studies, options.seeds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
