"""Scaling studies: losses of a known law on disk, and the prediction of the held-out run."""

import json
from pathlib import Path

import numpy as np
import pytest

import lmsmith.study.ladder as ladder_module
from lmsmith.errors import TrainingError
from lmsmith.study.check import config_of
from lmsmith.study.ladder import fit_ladder, graded
from lmsmith.study.plan import Study, read_study
from lmsmith.study.results import Place, Result, read_result
from lmsmith.study.run import open_place

WIDTHS = (16, 24, 32, 48, 64, 128)


def ladder(tmp_path: Path, fit: str) -> tuple[Study, Place, list[Result]]:
    """A study whose runs have ended with losses of 1.5 + 40 C^-0.2, where C are training FLOPs."""
    (tmp_path / "text.txt").touch()
    arms = "".join(f'"{width}" = {{"model.d_model" = {width}}}\n' for width in WIDTHS)
    (tmp_path / "study.toml").write_text(
        'sources = ["text.txt"]\nseeds = 2\nbudget.tokens_per_parameter = 20\n'
        'base = {preset = "llama", tokenizer = "byte", "model.n_layer" = 2, "model.n_head" = 2}\n'
        f'[scaling]\nfit = "{fit}"\nheld_out = "128"\n[arms]\n{arms}'
    )
    study = read_study(tmp_path / "study.toml")
    place = open_place(study, tmp_path / "out", threads=1)
    rng = np.random.default_rng(1)
    for arm in study.arms:
        for seed in study.seeds:
            config, settings = config_of(study, arm, seed)
            model = config.changed({"model.vocab_size": 256}, where="here").neural
            tokens = settings["train.tokens"]
            loss = (1.5 + 40 * (model.train_flops_per_token() * tokens) ** -0.2) * np.exp(
                rng.normal(0, 0.001)
            )
            row = {"val_bits_per_byte": loss, "tokens_seen": tokens, "finished": "tokens"}
            run = place.run(arm, seed)
            run.mkdir()
            (run / "summary.json").write_text(
                json.dumps(row | {"n_params": model.n_parameters(), "steps": 5})
            )
            recipe = (
                place.recipe(arm, seed).read_text().replace("[model]", "[model]\nvocab_size = 256")
            )
            (run / "config.toml").write_text(recipe)
    jobs = [(arm, seed) for arm in study.arms for seed in study.seeds]
    return study, place, [found for job in jobs if (found := read_result(place, study, *job))]


@pytest.mark.parametrize("fit", ["power-law", pytest.param("parametric", marks=pytest.mark.slow)])
def test_the_held_out_run_is_predicted(
    tmp_path: Path, fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder_module, "N_DRAWS", 25)
    study, place, results = ladder(tmp_path, fit)
    visible = [result for result in results if result.arm != "128"]
    prediction = fit_ladder(study, place, visible)
    assert prediction.actual == ()
    assert prediction == fit_ladder(study, place, results)  # the held-out runs are never seen
    if fit == "power-law":
        assert prediction.law["E"] == pytest.approx(1.5, rel=0.1)
        assert prediction.compute > 8 * prediction.largest
    found = graded(prediction, results)
    assert len(found.actual) == 2
    assert abs(found.error) < 0.01
    assert found.n_inside == 2
    assert "the error is" in str(found)


def test_a_ladder_that_failed(tmp_path: Path) -> None:
    study, place, results = ladder(tmp_path, "power-law")
    with pytest.raises(TrainingError, match="only 2 runs of the ladder finished"):
        fit_ladder(study, place, results[:2])
