"""Corrections of predicted steps: synthetic machines, and what is kept of a measurement."""

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import pytest
from a_machine import SPEEDS

from lmsmith.config import RunConfig
from lmsmith.machine import speeds as of_machine
from lmsmith.plan import calibrate, here
from lmsmith.plan.calibrate import LEAST, MOST, calibration, configs, corrections
from lmsmith.plan.cpu_time import FACTORS, GROUP_OF, GROUPS, cpu_parts
from lmsmith.plan.devices import of_machine as device_of
from lmsmith.plan.grade import cases
from lmsmith.plan.here import kept, measured
from lmsmith.plan.predict import predict
from lmsmith.train import ladder as of_steps
from lmsmith.train.ladder import seconds_of_step

RATES = ("products", "by_width", "attention", "copy", "small", "exponential", "overhead")
MEASURED: dict[str, Any] = {name: getattr(SPEEDS, name) for name in RATES}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(of_machine, "measure", lambda threads: dict(MEASURED))
    monkeypatch.setattr(here.OtherPrograms, "cores", lambda programs: 0.0)
    return tmp_path / "machine.json"


def test_every_part_belongs_to_one_group() -> None:
    assert GROUP_OF.keys() == FACTORS.keys()
    assert sum(map(len, GROUPS.values())) == len(FACTORS)


def test_corrections_of_a_synthetic_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    true = dict(zip(GROUPS, (1.3, 0.7, 1.1, 1.8), strict=True))
    timed = []
    for _ in range(12):
        parts = {part: draw.random() ** 4 for part in GROUP_OF}
        timed.append((parts, sum(true[GROUP_OF[part]] * x for part, x in parts.items())))
    slow = corrections([(parts, 99 * seconds) for parts, seconds in timed])
    assert max(slow.values()) == MOST
    fast = corrections([(parts, seconds / 99) for parts, seconds in timed])
    assert min(fast.values()) == LEAST
    monkeypatch.setattr(calibrate, "PENALTY", 0.0)
    assert corrections(timed) == pytest.approx(true)
    disturbed = [(timed[0][0], 3 * timed[0][1]), *timed[1:]]
    assert corrections(disturbed) == pytest.approx(true, rel=0.1)


def test_a_machine_twice_as_slow_in_everything() -> None:
    plain = measured()

    def timer(config: RunConfig) -> float:
        return 2 * sum(cpu_parts(config, plain).values())

    found = dataclasses.replace(plain, corrections=calibration(timer)(plain))
    for config in configs():
        assert sum(cpu_parts(config, found).values()) == pytest.approx(timer(config), rel=1e-6)


def test_configs_are_not_those_of_the_grades() -> None:
    found = list(configs())
    assert 8 <= len(found) <= 16
    graded = {settings["model.vocab_size"] for _, settings in cases(200, 1)}
    assert not graded & {config.model.vocab_size for config in found}


def test_a_measurement_is_kept_with_its_corrections(cache: Path) -> None:
    calls = []

    def correct(speeds: Any) -> dict[str, float]:
        calls.append(speeds)
        return dict.fromkeys(GROUPS, 1.5)

    assert measured().corrections == {}
    assert not cache.exists()  # without corrections it is not kept
    first = measured(correct)
    assert measured(correct) == kept(1) == first
    assert len(calls) == 1
    config = next(configs())
    assert sum(cpu_parts(config, first).values()) == pytest.approx(
        1.5 * sum(cpu_parts(config, dataclasses.replace(first, corrections={})).values())
    )
    cache.write_text(cache.read_text().replace("corrections", "other"))  # of an earlier version
    assert kept(1) is None


def test_a_measurement_beside_other_programs_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = 1.7
    monkeypatch.setattr(here.OtherPrograms, "cores", lambda programs: cores)
    calls = []

    def correct(speeds: Any) -> dict[str, float]:
        calls.append(speeds)
        return {}

    first = measured(correct)
    assert first.others == 1.7
    assert first.disturbed == (
        "other programs used 1.7 cores while this machine was measured, which makes the seconds "
        "less certain: the next call measures again"
    )
    assert first.disturbed in predict(next(configs()), device_of(first)).notes
    assert measured() == first  # a forecast measures nothing
    cores = 0.2
    assert measured(correct).disturbed == ""
    measured(correct)
    assert len(calls) == 2


def test_calibration_ends_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timed = [0.0], []
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: clock[0])

    def timer(config: RunConfig) -> float:
        clock[0] += 2.0
        timed.append(config)
        return 1.0

    speeds = measured()
    assert calibration(timer)(speeds).keys() == GROUPS.keys()
    assert len(timed) == 4
    groups = {GROUP_OF[max(parts, key=parts.__getitem__)] for parts in map(parts_of, timed)}
    assert len(groups) >= 3  # the first configs differ in what takes their time


def parts_of(config: RunConfig) -> dict[str, float]:
    return cpu_parts(config, measured())


def test_a_step_is_timed() -> None:
    assert 1e-4 < seconds_of_step(next(configs()), 1) < 10


def test_one_thread_is_measured_in_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another program took the core for a second in each operation and step."""
    clock = [0.0]

    def wall() -> float:
        clock[0] += 1.0
        return clock[0]

    with monkeypatch.context() as patch:
        patch.setattr(of_steps.time, "perf_counter", wall)
        assert seconds_of_step(next(configs()), 1) < 0.5
    monkeypatch.setattr(of_machine.torch, "get_num_threads", lambda: 1)
    assert of_machine._best(lambda: time.sleep(0.05)) < 0.02
