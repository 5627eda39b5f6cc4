"""Search: optuna draws trials, bad ones are stopped, the best become the arms of a study."""

from pathlib import Path

import pytest
from test_study_run import command

from lmsmith.study.plan import read_study
from lmsmith.study.results import Result
from lmsmith.study.run import Watcher
from lmsmith.study.search import finalists


def test_finalists_are_the_best_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna searches (lmsmith[study])")
    (tmp_path / "text.txt").touch()
    file = tmp_path / "study.toml"
    file.write_text(
        'sources = ["text.txt"]\nseeds = 2\nbudget.tokens = 100_000\n'
        'base = {preset = "llama", "model.n_layer" = 1}\n[search]\ntrials = 6\nfinalists = 2\n'
        '[search.space]\n"optim.learning_rate" = [0.001, 0.01, 0.1, 0.4]\n'
        '"optim.beta2" = {low = 0.9, high = 0.99}\n'
    )
    ended = list[Result]()

    class Seen(Watcher):
        def ended(self, result: Result) -> None:
            ended.append(result)

    study = read_study(file)
    found = finalists(study, tmp_path / "out", watcher=Seen(), command=command)
    assert len(ended) == 6
    values = sorted(result.value for result in ended if result.value is not None)
    names = {result.arm.partition(" (")[0]: result.value for result in ended}
    assert [names[arm.name] for arm in found.arms] == values[:2]
    assert all(0.9 <= arm.settings["optim.beta2"] <= 0.99 for arm in found.arms)
    # An ended search is not repeated.
    again = finalists(study, tmp_path / "out", watcher=Seen(), command=command)
    assert again.arms == found.arms
    assert len(ended) == 6
