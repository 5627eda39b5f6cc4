"""The report of a study: what it says, and that a page can show it."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmsmith.report.study import write_study_report
from lmsmith.report.study_curves import curves_of
from lmsmith.study.engines import Job, Processes
from lmsmith.study.plan import read_study
from lmsmith.study.results import Place
from lmsmith.study.run import Studied, run_study

FAKE = Path(__file__).parent.parent / "study" / "fake_train.py"


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text("a text\n" * 50)
    (folder / "study.toml").write_text(
        'question = "Which <rate>?"\nsources = ["text.txt"]\nseeds = 3\n'
        'base = {preset = "llama", "model.n_layer" = 1}\nbudget.tokens = 100_000\n'
        '[axes]\n"optim.learning_rate" = [0.001, 0.4, 0.1]\n'
    )

    def command(place: Place, job: Job) -> list[str]:
        return [sys.executable, "-S", str(FAKE), str(place.recipe(*job)), str(place.run(*job))]

    out = folder / "out"
    engine = Processes(Place(out), 1, 2, command)
    return run_study(read_study(folder / "study.toml"), out, engine=engine)


def test_the_page_has_every_part(studied: Studied) -> None:
    html = write_study_report(studied).read_text(encoding="utf-8")
    HTMLParser().feed(html)
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        *("Verdicts", "Final losses", "Differences in bits per byte", "Learning curves"),
        *("Diverged and failed runs", "Samples", "Settings", "How to repeat it"),
    ]
    assert "Which &lt;rate&gt;?" in html
    assert "Once &lt;b&gt;upon" in html
    (verdict,) = studied.verdicts
    assert str(verdict) in html
    assert html.count("fill-opacity:.16") == 6  # two arms, three charts
    assert "learning_rate=0.1, seed 3: diverged" in html
    assert "lmsmith study " in html


def test_curves_are_means_over_seeds(studied: Studied) -> None:
    first, second, third = curves_of(studied)
    values = [run.evals[-1]["val_bits_per_byte"] for run in first.runs]
    assert first.mean[-1] == pytest.approx(sum(values) / 3)
    assert (first.low < first.mean).all()
    assert first.axes["tokens"].tolist() == second.axes["tokens"].tolist() == [300, 600, 900]
    assert not len(third.mean)


def test_the_picture(studied: Studied) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the PNG")
    write_study_report(studied)
    content = (studied.place.out / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG")
