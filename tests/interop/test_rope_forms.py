"""RoPE settings in every form that transformers 4 and 5 write and read give the same logits as
theirs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from other_versions import python_with
from random_models import LLAMA3, logits, random_ids, random_model, saved, transformers

from lmsmith.interop.huggingface import read, write
from lmsmith.models.gpt import GPT

SIZES = {"num_attention_heads": 3, "num_key_value_heads": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
FACTORS = [1.0, 1.1, 1.5, 2.0, 3.0, 4.0]
LONG = {
    "rope_type": "longrope",
    "factor": 1.5,
    "short_factor": FACTORS,
    "long_factor": FACTORS,
}
LINEAR = {"rope_type": "linear", "factor": 2.5}
OTHER = {"rope_theta": 500.0}
STRETCHED = OTHER | {"rope_scaling": LINEAR}


def old(scaling: dict[str, Any]) -> dict[str, Any]:
    """With the original name of `rope_type`."""
    return {"type" if name == "rope_type" else name: value for name, value in scaling.items()}


def without(scaling: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in scaling.items() if key != name}


# What config.json says -> the same in the words of version 4, or True where these are version 4's
# words.
FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "nothing": ({}, True),
    "4, base": (OTHER, True),
    "4, base and null": (OTHER | {"rope_scaling": None}, True),
    "4, default": (OTHER | {"rope_scaling": {"rope_type": "default"}}, True),
    "4, linear": ({"rope_scaling": LINEAR}, True),
    "4, linear and base": (OTHER | {"rope_scaling": LINEAR}, True),
    "4, linear of old": ({"rope_scaling": old(LINEAR)}, True),
    "4, linear by both names": (OTHER | {"rope_scaling": LINEAR | old(LINEAR)}, True),
    "4, llama3": (OTHER | {"rope_scaling": LLAMA3}, True),
    "4, llama3 of old": (OTHER | {"rope_scaling": old(LLAMA3)}, True),
    "4, yarn": (OTHER | {"rope_scaling": YARN}, True),
    "4, yarn, attention factor": (OTHER | {"rope_scaling": YARN | {"attention_factor": 0.8}}, True),
    "4, longrope": (OTHER | {"rope_scaling": LONG}, True),
    "5, yarn": ({"rope_parameters": YARN | OTHER}, OTHER | {"rope_scaling": YARN}),
    "5, longrope": (
        {"rope_parameters": LONG | OTHER | {"original_max_position_embeddings": 223}},
        OTHER | {"rope_scaling": LONG},
    ),
    "5, base inside": ({"rope_parameters": {"rope_type": "default"} | OTHER}, OTHER),
    "5, base inside alone": ({"rope_parameters": OTHER}, OTHER),
    "5, base beside": (OTHER | {"rope_parameters": {"rope_type": "default"}}, OTHER),
    "5, base beside nothing": (OTHER | {"rope_parameters": {}}, OTHER),
    "5, base beside null": (OTHER | {"rope_parameters": None}, OTHER),
    "5, base nowhere": ({"rope_parameters": {"rope_type": "default"}}, {}),
    "5, base inside and another beside": (
        {"rope_theta": 7.0, "rope_parameters": LINEAR | OTHER},
        STRETCHED,
    ),
    "5, linear": ({"rope_parameters": LINEAR | OTHER}, STRETCHED),
    "5, linear beside": (OTHER | {"rope_parameters": LINEAR}, STRETCHED),
    "5, linear of old": (OTHER | {"rope_parameters": old(LINEAR)}, STRETCHED),
    "5, linear and null": ({"rope_parameters": LINEAR | OTHER, "rope_scaling": None}, STRETCHED),
    "5, llama3": ({"rope_parameters": LLAMA3 | OTHER}, OTHER | {"rope_scaling": LLAMA3}),
    "5, llama3 beside": (OTHER | {"rope_parameters": LLAMA3}, OTHER | {"rope_scaling": LLAMA3}),
    "5, original context beside": (
        {
            "original_max_position_embeddings": 40,
            "rope_parameters": without(LLAMA3, "original_max_position_embeddings") | OTHER,
        },
        OTHER | {"rope_scaling": LLAMA3},
    ),
    "5, original context nowhere": (
        {"rope_parameters": without(LLAMA3, "original_max_position_embeddings") | OTHER},
        OTHER | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 223}},
    ),
    "5, in the place of version 4": ({"rope_scaling": LINEAR | OTHER}, STRETCHED),
    "both, of which the first holds": (
        OTHER | {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 9.0}},
        True,
    ),
}


def written(theirs: Any, folder: Path, said: dict[str, Any]) -> Path:
    """The model of transformers with these RoPE settings."""
    saved(theirs, folder)
    found = json.loads((folder / "config.json").read_text())
    found = {name: value for name, value in found.items() if not name.startswith("rope_")}
    # The original context of Llama 3 must be below it for version 4.
    (folder / "config.json").write_text(json.dumps(found | {"max_position_embeddings": 223} | said))
    return folder


def ours(folder: Path) -> GPT:
    config, tensors = read(folder)
    model = GPT(config).eval()
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_logits_of_version_4(form: str, tmp_path: Path) -> None:
    said, words = FORMS[form]
    theirs = random_model("llama", **SIZES)
    folder = written(theirs, tmp_path / "theirs", said)
    same = folder if words is True else written(theirs, tmp_path / "same", words)
    ids = random_ids()
    wanted = logits(transformers.AutoModelForCausalLM.from_pretrained(same).eval(), ids)
    assert (logits(ours(folder), ids) - wanted).abs().max() < 1e-5
    if form != "nothing":
        plain = logits(theirs, ids)
        assert (wanted - plain).abs().max() > 1e-2 or form == "5, base nowhere"


@pytest.mark.slow
def test_every_form_has_the_logits_of_version_5(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Version 5 also reads what lmsmith writes as lmsmith does."""
    python = python_with("transformers 5", request)
    theirs, ids = random_model("llama", **SIZES), random_ids()
    folders = {
        name: written(theirs, tmp_path / str(i), said)
        for i, (name, (said, _)) in enumerate(FORMS.items())
    }
    for name in list(folders):
        folders[f"{name}, exported"] = out = tmp_path / f"{folders[name].name}-out"
        out.mkdir()
        write(out, *read(folders[name]))
    torch.save(ids, tmp_path / "ids.pt")
    script = Path(__file__).with_name("say_logits.py")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
    subprocess.run(
        [python, script, tmp_path / "ids.pt", *folders.values()],
        check=True,
        env=env,
        stdout=sys.stderr,
    )
    for name, folder in folders.items():
        wanted = torch.load(folder / "logits.pt")
        assert (logits(ours(folder), ids) - wanted).abs().max() < 1e-5, name
