"""`lmsmith verify --gradients`: the engines agree, and a wrong one is found with its wrong tensors."""

import json

import numpy as np
import pytest

from lmsmith.cli import parse
from lmsmith.cli.console import Printer
from lmsmith.reference.blocks import Sizes, parameter_shapes
from lmsmith.reference.modules import GELU
from lmsmith.verify.gradients import SIZES, TOLERANCE, compare_gradients

OTHER = Sizes(n_layer=3, n_head=5, d_model=5, vocab_size=3, padded_vocab_size=9, context_length=4)


@pytest.mark.parametrize(
    ("sizes", "seed"), [(SIZES, 2), (OTHER, 1)], ids=["two layers", "three layers"]
)
def test_all_implementations_have_the_same_gradients(sizes: Sizes, seed: int) -> None:
    found = compare_gradients(sizes, seed)
    assert [engine.engine for engine in found] == ["scalar", "modules", "torch", "differences"]
    assert TOLERANCE == 1e-9
    for engine in found:
        assert list(engine.gradients) == list(parameter_shapes(sizes))
        worst = max(engine.loss, *engine.gradients.values())
        assert worst < (1e-6 if engine.engine == "differences" else 1e-11), engine


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(
        n_layer=1, n_head=1, d_model=3, vocab_size=3, padded_vocab_size=4, context_length=4
    )
    monkeypatch.setattr(
        "lmsmith.verify.gradients.compare_gradients", lambda: compare_gradients(sizes)
    )


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    options = parse(["verify", *words])
    status = options.call(options, Printer(), 0.0)
    return status, capsys.readouterr().out


@pytest.mark.usefixtures("smaller")
def test_the_table_names_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = verify(capsys, "--gradients")
    assert status == 0
    names = [line.split()[0] for line in out.splitlines()[4:-1]]
    assert names == ["loss", *parameter_shapes(SIZES), "tolerance"]
    assert out.endswith("All differences are within tolerance.\n")


@pytest.mark.usefixtures("smaller")
def test_a_wrong_gradient_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GELU of the modules is wrong by one part in a million."""
    right = GELU.backward
    monkeypatch.setattr(GELU, "backward", lambda *given: (right(*given)[0] * (1 + 1e-6),))
    status, out = verify(capsys, "--gradients")
    assert status == 1
    assert "Above the tolerance (!): modules." in out
    wrong = {line.split()[0] for line in out.splitlines() if "!" in line.split("Above")[0]}
    assert {"fcw", "fcb", "ln2w", "ln2b"} <= wrong
    assert not wrong & {"loss", "lnfw", "lnfb"}  # after the last GELU


@pytest.mark.usefixtures("smaller")
def test_a_nan_gradient_counts_as_a_difference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GELU, "backward", lambda _self, dy, _saved: (np.full_like(dy, np.nan),))
    status, out = verify(capsys, "--gradients", "--json")
    assert status == 1
    found = json.loads(
        out, parse_constant=pytest.fail
    )  # no Infinity: other programs cannot read it
    assert found["agree"] is False
    agrees = {name: engine["agrees"] for name, engine in found["gradients"].items()}
    assert agrees == {"scalar": True, "modules": False, "torch": True, "differences": True}
    modules = found["gradients"]["modules"]
    assert modules["gradients"]["fcw"] is None
    assert 0 <= modules["loss"] <= modules["tolerance"]
