"""Stacked bars of plans as PNG: the lengths that matplotlib draws are those of the plans."""

import sys
from pathlib import Path

import pytest

import lmsmith
from lmsmith.api.planning import check_plans_file, plans_file
from lmsmith.errors import StorageError, UsageError
from lmsmith.plan.predict import Plan
from lmsmith.report.plan_picture import BEGINNING, OTHER, figure_of


@pytest.fixture(scope="module")
def plans() -> list[tuple[str, Plan]]:
    found = [
        lmsmith.plan(preset=name, price=1.0, settings={"model.vocab_size": 50257})
        for name in ("gpt2", "llama")
    ]
    return list(zip(("gpt2", "llama"), found, strict=True))


def test_bars_are_as_long_as_the_numbers(plans: list[tuple[str, Plan]]) -> None:
    pytest.importorskip("matplotlib")
    memory, flops, time = figure_of(plans).axes
    totals = {
        memory: [plan.memory.n_bytes for _, plan in plans],
        flops: [plan.flops["causal"].per_token for _, plan in plans],
        time: [plan.step.seconds for _, plan in plans],
    }
    for panel, expected in totals.items():
        lengths = [0.0, 0.0]
        for bar in panel.patches:
            lengths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
        assert lengths == pytest.approx(expected)
    names = [each.get_text() for each in memory.get_legend().get_texts()]
    assert {"optimizer state", "parameters"} < set(names)
    assert names[-1] == OTHER
    labels = [label.get_text() for label in memory.get_yticklabels()]
    assert labels[0] == "gpt2: 14.3 GB"


def test_files(plans: list[tuple[str, Plan]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = plans_file(plans[:1], tmp_path / "plan.png")
    assert picture.read_bytes().startswith(BEGINNING)
    check_plans_file(picture)  # a picture is replaced
    (tmp_path / "photo.png").write_bytes(b"GIF89a")
    with pytest.raises(StorageError, match="is not a result of this command"):
        check_plans_file(tmp_path / "photo.png")


def test_without_matplotlib(
    plans: list[tuple[str, Plan]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib"):
        plans_file(plans, tmp_path / "plan.png")
