"""Models that transformers has no class for are exported with their own code, which computes the
same in transformers 4 and 5.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from other_versions import python_with
from random_models import random_ids
from use_custom_code import HOW, TEXTS, used

from lmsmith.checkpoint import load_model, save_model
from lmsmith.config import flatten
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.interop import custom
from lmsmith.interop.exporting import export_model
from lmsmith.interop.huggingface import open_in_transformers, read
from lmsmith.interop.importing import import_model
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {"ngram_table_size": 50}),
    "every switch": (
        "modern",
        {
            "ngram_table_size": 50,
            "n_kv_head": 2,
            "window": 7,
            "window_pattern": "SL",
            "value_embedding_every": 2,
            "residual_scalars": True,
            "vocab_multiple": 64,
            "rope_scaling": "llama3",
            "rope_factor": 8.0,
            "rope_original_context": 20,
            "feed_forward": "geglu",
            "bias": True,
            "attention_bias": "qkv",
        },
    ),
    "post-norm": ("gpt2", {"norm_placement": "post", "ngram_tables": (3,), "ngram_table_size": 50}),
    "linear": ("modern", {"rope_scaling": "linear", "rope_factor": 2.0, "ngram_tables": ()}),
    "no norms": (
        "modern",
        {"norm": "none", "embedding_norm": False, "positions": "none", "n_layer": 1},
    ),
    "elman": ("rnn", {"activation": "sigmoid"}),
    "gru": ("gru", {"tied_head": True}),
    "lstm": ("lstm", {"logit_softcap": 3.0}),
}


def run_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A run with random weights, none of them zero or one. Returns its model."""
    name, changes = KINDS[kind]
    sizes: dict[str, Any] = {"vocab_size": 257, "context_length": 64, "n_layer": 3, "d_model": 36}
    if name not in ("rnn", "gru", "lstm"):
        sizes["n_head"] = 6
    changes = {f"model.{key}": value for key, value in (sizes | changes).items()}
    config: Any = preset(name).changed(changes, where="here").model
    model = config.build().eval()
    generator = torch.Generator().manual_seed(3)
    for key, p in model.named_parameters():
        p.data.normal_(
            1.0 if p.dim() == 1 and key.endswith("weight") else 0.0, 0.2, generator=generator
        )
    tensors = {key: p.detach().to(dtype) for key, p in model.named_parameters()}
    folder.mkdir(parents=True)
    save_model(folder / "model", tensors, {"model": flatten(vars(config))})
    save_tokenizer(ByteTokenizer(True), folder / "model")
    return model


def greedy(model: Any, text: str) -> list[int]:
    """The text and its greedy continuation, each step computed from scratch, without a cache."""
    ids = list(text.encode())
    for _ in range(HOW["max_new_tokens"]):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 256:
            break
    return ids


def check(model: Any, folder: Path, found: dict[str, Any]) -> None:
    ids = random_ids(V=257)
    with torch.no_grad():
        expected = model(ids)
    assert (torch.load(folder / "logits.pt") - expected).abs().max() < 1e-5
    assert found["loss"] == pytest.approx(
        float(F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), rel=1e-5
    )
    assert found["alone"] == found["without cache"] == found["again"] == greedy(model, TEXTS[0])
    assert found["other"] == greedy(model, TEXTS[1])
    for text, row in zip(TEXTS, found["batch"], strict=True):  # padded on the left
        padding = len(TEXTS[0]) - len(text)
        row = row[padding:]
        alone = greedy(model, text)
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {256}
    assert found["beams"] == found["beams without cache"]
    assert found["piped"] == found["decoded"]
    assert found["n gradients"] == len(list(model.parameters()))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code of models to its cache."""
    place = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
    monkeypatch.setenv("HF_MODULES_CACHE", place)


def exported(kind: str, tmp_path: Path) -> tuple[Any, Path]:
    model = run_of(kind, tmp_path / "run")
    folder = tmp_path / kind.replace(" ", "-")
    export_model(tmp_path / "run", folder, to="hf")
    torch.save(random_ids(V=257), folder / "ids.pt")
    return model, folder


FEW = ("modern", "every switch", "lstm")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FEW)) for kind in KINDS]
)
def test_computes_the_same_in_this_version(kind: str, tmp_path: Path) -> None:
    model, folder = exported(kind, tmp_path)
    check(model, folder, used(folder))
    config, tensors = read(folder)
    assert set(tensors) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        ids = random_ids(V=257)
        assert torch.equal(config.restore(tensors)(ids), model(ids))


@pytest.mark.slow
def test_computes_the_same_in_version_5(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = python_with("transformers 5", request)
    models = {kind: exported(kind, tmp_path / str(i)) for i, kind in enumerate(KINDS)}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = Path(__file__).with_name("use_custom_code.py")
    done = subprocess.run(
        [python, script, *(folder for _, folder in models.values())],
        check=True,
        env=env | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
    )
    found = json.loads(done.stdout)
    for model, folder in models.values():
        check(model, folder, found[str(folder)])


LM_EVAL = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

def ask(lm, kind, *items):
    instances = [Instance(kind, {}, item, i) for i, item in enumerate(items)]
    return getattr(lm, kind)(instances, disable_tqdm=True)

found = {}
for folder in sys.argv[1:]:
    lm = HFLM(folder, trust_remote_code=True, device="cpu", dtype="float32", batch_size=2)
    pairs = ask(lm, "loglikelihood", ("The cat", " sat"), ("A", " dog ran"))
    text = ask(lm, "generate_until", ("The cat", {"until": ["~~"], "max_gen_toks": 6}))
    found[folder] = {"pairs": [p for p, _ in pairs], "text": text}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_lm_evaluation_harness_runs_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = python_with("lm-eval", request)
    models = [exported(kind, tmp_path / kind) for kind in ("modern", "gru")]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", LM_EVAL, *(folder for _, folder in models)],
        check=True,
        env=env | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for model, folder in models:
        said = found[str(folder)]
        for (given, scored), value in zip(
            (("The cat", " sat"), ("A", " dog ran")), said["pairs"], strict=True
        ):
            ids = torch.tensor([list((given + scored).encode())])
            expected = model.log_probabilities(ids, n_given=len(given)).sum()
            assert value == pytest.approx(expected.item(), rel=1e-5)
        assert len(said["text"]) == 1


@pytest.mark.parametrize("kind", ["modern", "lstm"])
def test_an_exported_folder_can_be_imported(kind: str, tmp_path: Path) -> None:
    _, folder = exported(kind, tmp_path)
    run, summary = import_model(str(folder), out=tmp_path / "again")
    before, after = (load_model(place / "model")[0] for place in (tmp_path / "run", run))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert summary["n_params"] == sum(tensor.numel() for tensor in before.values())


def test_in_half_precision(tmp_path: Path) -> None:
    run_of("modern", tmp_path / "run", torch.bfloat16)
    export_model(tmp_path / "run", tmp_path / "out", to="hf")
    theirs = open_in_transformers(tmp_path / "out").bfloat16()
    with torch.no_grad():
        assert theirs(random_ids(V=257)).logits.isfinite().all()


def test_texts_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    _, folder = exported("modern", tmp_path)
    theirs = open_in_transformers(folder)
    with pytest.raises(ValueError, match="has 65 tokens, but the model's context is 64"):
        theirs(random_ids(V=257, T=65))
    with pytest.raises(ValueError, match="DynamicCache only, not StaticCache"):
        theirs.generate(random_ids(V=257, T=5), cache_implementation="static", max_new_tokens=3)


def test_the_modeling_files_know_the_settings_that_are_written() -> None:
    from lmsmith.interop import modeling_lmsmith_gpt, modeling_lmsmith_rnn

    for code, config in zip(
        custom.CUSTOM,
        (modeling_lmsmith_gpt.LmsmithGPTConfig(), modeling_lmsmith_rnn.LmsmithRNNConfig()),
        strict=True,
    ):
        assert config.model_type == code.model_type
        for name in code.settings:
            assert hasattr(config, custom._NAMES.get(name, name)), name


def test_a_setting_that_the_code_does_not_implement_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpt = custom.CUSTOM[0]
    without = tuple(name for name in gpt.settings if name != "residual_scalars")
    known = custom.CustomCode(gpt.kind, gpt.file, gpt.prefix, without)
    monkeypatch.setattr(custom, "CUSTOM", (known,))
    config = preset("modern").changed({"model.residual_scalars": True}, where="here").model
    with pytest.raises(ConfigError, match=r"does not implement model\.residual_scalars = true"):
        custom.needed_for(config)
    with pytest.raises(ConfigError, match="a model of kind ngram"):
        custom.needed_for(preset("ngram").model)
    assert custom.needed_for(preset("llama").model) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_layer", 2, r"do not fit its config.json: blocks\."),
        ("norm", "batchnorm", "is damaged: model.norm"),
        ("vocab_size", 0, "vocab_size = 0"),
    ],
)
def test_bad_settings(name: str, value: Any, message: str, tmp_path: Path) -> None:
    _, folder = exported("modern", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        import_model(str(folder), out=tmp_path / "again")
    assert not (tmp_path / "again").exists()
