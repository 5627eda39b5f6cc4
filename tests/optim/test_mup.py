"""muP: the factors of table 3, and the coordinate check: sizes after some steps do not depend on the
width."""

import math

import numpy as np
import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.optim.groups import Optimizers

BASE, HEAD = 32, 16


def config(width: int, parametrization: str, **changes: object) -> RunConfig:
    settings = {
        "model.n_layer": 2,
        "model.d_model": width,
        "model.n_head": width // HEAD,
        "model.d_ff": 3 * width,
        "model.context_length": 16,
        "model.vocab_size": 50,
        "model.parametrization": parametrization,
        "model.base_width": BASE,
        "optim.learning_rate": 0.01,
    }
    return preset("llama").changed(settings | changes, where="the test")


def built(run: RunConfig, seed: int = 1) -> tuple[GPT, Optimizers]:
    model = GPT(GPTConfig.of(run.model))
    model.initialise(torch.Generator().manual_seed(seed))
    return model, Optimizers(model, run.optim)


def rates(optimizers: Optimizers) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in optimizers.named.items()}
    return {
        names[p]: (group["lr"], group["weight_decay"])
        for optimizer in optimizers.all
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("init", ["gpt2", "truncated-normal", "zero-projections"])
def test_at_the_base_width_nothing_changes(init: str) -> None:
    (one, ours), (other, theirs) = (
        built(config(BASE, which, **{"model.init": init})) for which in ("mup", "standard")
    )
    assert rates(ours) == rates(theirs)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Table 3 of Yang et al. 2022 at four times the base width: table, matrix, head, gain.
FACTORS = {
    "adamw": (1, 1 / 4, 1 / 4, 1),
    "adam": (1, 1 / 4, 1 / 4, 1),
    "sgd": (4, 1, 1 / 4, 4),
    "muon": (1, 1, 1 / 4, 1),
}


@pytest.mark.parametrize("optimizer", FACTORS)
def test_learning_rates_and_weight_decay(optimizer: str) -> None:
    names = ("token_embedding.weight", "blocks.1.feed_forward.up.weight", "head.weight")
    names = (*names, "blocks.0.norm_attention.weight")
    changes = {"optim.name": optimizer}
    found = rates(built(config(4 * BASE, "mup", **changes))[1])
    before = rates(built(config(4 * BASE, "standard", **changes))[1])
    assert found.keys() == before.keys()
    for name, factor in zip(names, FACTORS[optimizer], strict=True):
        assert found[name][0] == pytest.approx(factor * before[name][0]), name
        product = before[name][0] * before[name][1]  # what a step shrinks a weight by
        assert found[name][0] * found[name][1] == pytest.approx(product), name


@pytest.mark.parametrize("init", ["gpt2", "truncated-normal", "zero-projections"])
def test_initial_standard_deviations(init: str) -> None:
    """Those of the base width, times 1 for tables, 1 / sqrt(m) for matrices and 1 / m for the head;
    m = 8."""
    names = {
        "token_embedding.weight": 1.0,
        "blocks.1.feed_forward.up.weight": math.sqrt(8),
        "blocks.0.attention.out.weight": math.sqrt(8),
        "head.weight": 8.0,
    }
    changes = {"model.init": init, "model.vocab_size": 500}
    base = dict(built(config(BASE, "mup", **changes))[0].named_parameters())
    wide = dict(built(config(8 * BASE, "mup", **changes))[0].named_parameters())
    for name, smaller in names.items():
        wanted = base[name].std().item() / smaller
        assert wide[name].std().item() == pytest.approx(wanted, rel=0.05, abs=1e-12), name


def logit_changes(parametrization: str, optimizer: str) -> list[float]:
    """The RMS change of the logits after some steps, by width."""
    found = []
    for width in (BASE, 4 * BASE, 8 * BASE):
        changes = {"optim.name": optimizer, "optim.weight_decay": 0.0}
        run, sizes = config(width, parametrization, **changes), []
        for seed in range(2):
            model, optimizers = built(run, seed)
            ids = torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(7))
            before = model.logits(model.hidden(ids[:, :-1])).detach()
            for _ in range(6):
                logits = model.logits(model.hidden(ids[:, :-1]))
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), ids[:, 1:].flatten()
                ).backward()
                optimizers.step(1.0)
            after = model.logits(model.hidden(ids[:, :-1])).detach()
            sizes.append((after - before).square().mean().sqrt().item())
        found.append(float(np.mean(sizes)))
    return found


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_coordinate_check(optimizer: str) -> None:
    """Over eight times the width, the change of the logits stays within a third; in the standard
    parametrization it grows."""
    base, four, eight = logit_changes("mup", optimizer)
    assert max(four, eight) < 1.35 * base
    assert min(four, eight) > base / 1.35
    base, _, eight = logit_changes("standard", optimizer)
    assert eight > 1.5 * base


def test_refused() -> None:
    with pytest.raises(ConfigError, match="tied_head"):
        config(BASE, "mup", **{"model.tied_head": True})
