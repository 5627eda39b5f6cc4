"""ONNX export: onnxruntime computes the same logits and text as the model."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from other_versions import python_with
from test_custom_code import greedy, run_of
from test_runs import lmsmith

import lmsmith as package
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.interop import onnx_model

TEXTS = ["The cat sat.", "A"]
ONNX = ["modern", "every switch", "post-norm", "no norms"]


@pytest.mark.slow
def test_greedy_text_with_past_key_values(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = python_with("onnx", request)
    # A model without norms has no operator that these do not have.
    models = {kind: run_of(kind, tmp_path / kind) for kind in ONNX if kind != "no norms"}
    script = Path(__file__).with_name("use_onnx.py")
    project = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [python, script, json.dumps(TEXTS), *(tmp_path / kind for kind in models)],
        check=True,
        env=os.environ | {"PYTHONPATH": project},
        stdout=subprocess.PIPE,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, model in models.items():
        said = found[str(tmp_path / kind)]
        assert said["ids"] == [greedy(model, text) for text in TEXTS]
        assert said["receipt"]["checked"]["onnxruntime"]["max_logit_difference"] < 1e-4
        assert {"model.onnx", "tokenizer.json"} <= set(said["receipt"]["sha256"])


@pytest.mark.parametrize("kind", ONNX)
def test_the_traced_step_computes_what_the_model_does(kind: str, tmp_path: Path) -> None:
    """In three calls, the second of one token."""
    model = run_of(kind, tmp_path / "run")
    step, config = onnx_model.Step(model), model.config
    ids = torch.randint(257, (2, 60), generator=torch.Generator().manual_seed(1))
    past = [torch.zeros(2, config.n_kv, 0, config.width_head) for _ in range(2 * config.n_layer)]
    past += [torch.zeros(2, 0, dtype=torch.int64)] * bool(config.ngram_tables)
    parts = []
    with torch.no_grad():
        for part in ids.split([30, 1, 29], dim=1):
            logits, *past = step(part, past)
            parts.append(logits)
        assert (torch.cat(parts, dim=1) - model(ids)).abs().max() < 1e-5
    inputs, outputs = onnx_model.names(config)
    assert len(inputs) == 1 + len(past)
    assert len(outputs) == 1 + len(past)


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run_of("modern", tmp_path / "run")
    words = ["export", tmp_path / "run", "--to", "onnx", "--out", tmp_path / "out"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    assert lmsmith(*words) == 2
    assert "pip install 'lmsmith[onnx]'" in capsys.readouterr().err
    assert lmsmith(*words, "--dtype", "bfloat16") == 2
    assert "the ONNX graph computes in float32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"not models of kind rnn.*--preset modern"):
        onnx_model.check(preset("gru").model)
