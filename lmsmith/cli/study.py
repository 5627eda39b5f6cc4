"""The command `study`: many runs, and verdicts with their noise."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lmsmith import api
from lmsmith.cli.grammar import Verbs, at_least_one
from lmsmith.errors import UsageError

MOST_RUNS = 200


def add(verbs: Verbs) -> None:
    study = verbs.verb(
        "study",
        _study,
        "run a sweep, an ablation or a scaling study, and give verdicts with their noise",
        "lmsmith study recipes/studies/norm-placement.toml demo/stories.jsonl",
    )
    study.add_argument("study", type=Path, metavar="STUDY.toml", help="the study file")
    study.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="texts to train on, instead of the file's"
    )
    study.add_argument("--out", type=Path, metavar="DIR", help="the study's folder (studies/NAME)")
    study.add_argument(
        "--threads", type=at_least_one, default=1, metavar="N", help="threads of each run (1)"
    )
    study.add_argument(
        "--at-once",
        type=at_least_one,
        default=0,
        metavar="N",
        help="runs at a time (as many as the cores allow)",
    )
    study.add_argument(
        "--max-runs",
        type=at_least_one,
        default=MOST_RUNS,
        metavar="N",
        help=f"refuse a study of more runs ({MOST_RUNS})",
    )
    study.add_argument(
        "--looks",
        type=_numbers,
        default=(),
        metavar="N,N,...",
        help="sequential stopping: numbers of seeds after which the study ends if every difference "
        "is shown; the error rate over all looks stays 5%%",
    )
    study.add_argument(
        "--a-a",
        action="store_true",
        help="A/A: compare the baseline with itself under other seeds, to measure the noise",
    )
    study.add_argument(
        "--engine",
        choices=["processes", "ray"],
        default="processes",
        help="where the runs run: on this machine, or on a Ray cluster (processes)",
    )
    study.add_argument(
        "--dry-run", action="store_true", help="check the study and list its runs; run nothing"
    )
    study.add_argument(
        "--slurm",
        action="store_true",
        help="run nothing; write the recipes and print a SLURM job array. When it has ended, the "
        "same command without --slurm gives the verdicts",
    )
    study.add_argument("--json", action="store_true", help="print results.json at the end")


def _numbers(value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if all(part.strip().isdecimal() for part in parts):
        return tuple(map(int, parts))
    raise argparse.ArgumentTypeError(f"{value!r}: expected whole numbers with commas, as 3,5,8")


def _study(options: argparse.Namespace, console: Console, started: float) -> int:
    """Status 1 if a run was interrupted, or if no run finished."""
    if options.dry_run or options.slurm:
        return _only_planned(options, console)
    quiet = Console(quiet=True)
    studied = api.study(
        options.study,
        options.sources,
        out=options.out,
        threads=options.threads,
        at_once=options.at_once,
        max_runs=options.max_runs,
        looks=options.looks,
        a_a=options.a_a,
        engine=options.engine,
        progress=quiet if options.json else console,
    )
    from lmsmith.plan.show import bytes_of
    from lmsmith.study.show import summary

    if options.json:
        print((studied.place.out / "results.json").read_text(encoding="utf-8"), end="")
    else:
        for line in summary(studied):
            console.print(line)
        console.print(f"report   {studied.report}")
        size, runs = bytes_of(studied.place.size_of_runs()), studied.place.out / "runs"
        console.print(f"disk     {size} of models, checkpoints and tokens in {runs}")
        if not (studied.place.out / "report.png").exists():
            console.print("note     report.png needs matplotlib: `pip install 'lmsmith[study]'`")
    finished = any(result.value is not None for result in studied.results)
    return 0 if finished and not studied.interrupted else 1


def _only_planned(options: argparse.Namespace, console: Console) -> int:
    """`--dry-run` and `--slurm`."""
    from lmsmith.study.announce import lines
    from lmsmith.study.engines import slurm_script
    from lmsmith.study.plan import against_itself, read_study
    from lmsmith.study.results import read_result
    from lmsmith.study.run import check_size, open_place

    study = read_study(options.study, options.sources)
    if options.a_a:
        study = against_itself(study)
    check_size(study, options.max_runs, options.looks)
    if options.slurm:
        if study.search:
            raise UsageError("--slurm runs a fixed list of arms, and this study searches for them.")
        out = options.out or Path("studies") / (options.study.stem + "-a-a" * options.a_a)
        place = open_place(study, out, options.threads)
        jobs = [(arm, seed) for seed in study.seeds for arm in study.arms]
        jobs = [job for job in jobs if read_result(place, study, *job) is None]
        if not jobs:
            raise UsageError(f"all runs of {out} have ended: leave --slurm out for the verdicts.")
        print(slurm_script(place, jobs, options.threads, options.at_once), end="")
        return 0
    for line in lines(study):
        console.print(line)
    for arm in study.arms:
        settings = ", ".join(f"{name} = {value}" for name, value in arm.settings.items())
        console.print(f"arm      {arm.name}: {settings or 'the base'}")
    return 0
