"""One learning rate for all groups, against the rates that the optimizers then use."""

from typing import Any

import pytest
from test_groups import built, groups_of

from lmsmith.config import settings
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.optim.groups import Optimizers
from lmsmith.optim.rates import note_on_rates, peak_rates, scale_all_groups


def rates_of(name: str, changes: dict[str, Any]) -> dict[str, float]:
    """Each parameter's peak learning rate."""
    model, config = built(name, **changes)
    return {key: rate for key, (_, rate, _) in groups_of(model, Optimizers(model, config)).items()}


@pytest.mark.parametrize("name", ["modern", "llama", "gpt2"])
@pytest.mark.parametrize("optim", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("table", [0.0, 0.05])
def test_every_group_keeps_its_ratio_to_the_main_one(name: str, optim: str, table: float) -> None:
    changes: dict[str, Any] = {"optim.name": optim, "optim.embedding_learning_rate": table}
    before = rates_of(name, changes)
    config = preset(name).changed(changes, where="here")
    after = rates_of(name, changes | scale_all_groups(config, "0.004", (), "here"))
    main = "blocks.0.attention.qkv.weight"
    assert after[main] == 0.004
    for key, rate in before.items():
        assert after[key] / after[main] == pytest.approx(rate / before[main]), key
    model, optim_config = built(name, **changes)
    found = groups_of(model, Optimizers(model, optim_config))
    assert {rate for _, rate, _ in found.values()} <= set(peak_rates(optim_config).values())
    assert next(iter(peak_rates(optim_config).values())) == before[main]


def test_a_fixed_rate_is_unchanged() -> None:
    config = preset("modern")
    found = scale_all_groups(config, 0.04, {"optim.learning_rate"}, "here")
    assert found == {"optim.muon_learning_rate": 0.04, "optim.embedding_learning_rate": 0.04}
    with pytest.raises(
        ConfigError, match=r"learning_rate = 0.04 and optim.muon_learning_rate = 0.02 both set"
    ):
        scale_all_groups(config, 0.04, {"optim.muon_learning_rate"}, "here")


@pytest.mark.parametrize("bad", [0, -1.0, "fast", "nan", float("inf"), True, None, [1], 10**400])
def test_an_invalid_peak(bad: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^learning_rate = .* in r\.toml: expected a number above 0"
    ):
        scale_all_groups(preset("modern"), bad, (), "r.toml")


def test_setting_one_rate_under_muon_is_noted() -> None:
    modern, llama = preset("modern").optim, preset("llama").optim
    lr, table, muon = (
        "optim.learning_rate",
        "optim.embedding_learning_rate",
        "optim.muon_learning_rate",
    )
    assert note_on_rates(modern, {lr}) == (
        "optim.learning_rate: changes only head, biases and gains; unchanged: matrices inside "
        "blocks (0.02), embedding "
        "tables (0.02). --learning-rate scales all groups"
    )
    assert "head, biases and gains (0.003), embedding tables (0.02)" in str(
        note_on_rates(modern, {muon, "train.seed"})
    )
    follows = preset("modern").changed({table: 0}, where="here").optim
    assert "changes only head, biases and gains and embedding tables" in str(
        note_on_rates(follows, {lr})
    )
    assert note_on_rates(modern, {table})
    for given in ({muon, lr}, {muon, lr, table}, set(), {"optim.name"}):
        assert note_on_rates(modern, given) is None
    assert note_on_rates(llama, {lr}) is None
    assert "--learning-rate" not in str(note_on_rates(modern, {lr}, resumed=True))


def test_settings_of_another_optimizer_are_noted() -> None:
    changes = {"optim.muon_learning_rate": 0.05, "optim.sgd_momentum": 0.8}
    changed = preset("llama").changed(changes, where="here")
    assert note_on_rates(changed.optim, {*changes, "train.steps"}) == (
        "optim.muon_learning_rate and optim.sgd_momentum: no effect with optim.name adamw"
    )
    muon = changed.changed({"optim.name": "muon"}, where="here").optim
    assert note_on_rates(muon, changes) == "optim.sgd_momentum: no effect with optim.name muon"
    # A run's config.toml names all settings, so those at their defaults cause no note.
    whole = {name for name, _ in settings()}
    assert note_on_rates(preset("llama").optim, whole) is None
