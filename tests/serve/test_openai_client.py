"""The `openai` package as the client, in an environment of its own: each point of a list."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")
pytest.importorskip("llguidance", reason="lmsmith[serve] is not installed")

from other_versions import python_with
from running import serving

import lmsmith
from lmsmith.api import LM


@pytest.mark.slow
def test_every_call_of_openais_client(request: pytest.FixtureRequest, folder: Path, lm: LM) -> None:
    python = python_with("openai", request)
    runs = [folder / name for name in ("run", "ngram", "gru")]
    with serving(runs, api_key="key") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        script = Path(__file__).with_name("openai_client.py")
        done = subprocess.run(
            [python, script, url, "key"], capture_output=True, text=True, timeout=200
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sampled: dict[str, Any] = {"max_tokens": 20, "temperature": 0.9, "seed": 5}
    texts = lm.generate_batch(["The cat"], n=2, **sampled)[0]
    n_prompt = len(lm.writer.encode("The cat"))
    stopped = min(texts[0].partition("a")[0], texts[0].partition("w")[0], key=len)
    expected = {
        "models": ["run", "ngram", "gru"],
        "model": "run",
        "n": texts,
        "logprobs": texts[0],
        "top_logprobs": True,
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": 40,
            "total_tokens": n_prompt + 40,
        },
        "ids as a prompt": texts[0],
        "lists": [lm.generate(prompt, **sampled) for prompt in ("The", "A")],
        "lists of ids": [texts[0]] * 2,
        "echo": "The" + lm.generate("The", **sampled),
        "echo with logprobs": True,
        "best_of": 1,
        "seed": [texts[0]] * 2,
        "logit_bias": "ttt",
        "stream": texts[0],
        "stream usage": len(lm.writer.encode("A")) + 20,
        "ngram": lmsmith.load(folder / "ngram").generate("The", **sampled),
        "gru": lmsmith.load(folder / "gru").generate("The", **sampled),
        "chat choices": [[0, "assistant", "length"], [1, "assistant", "length"]],
        "chat logprobs": found["chat"],
        "chat top_logprobs": True,
        "chat total": found["chat usage"],
        "max_completion_tokens": 3,
        "deltas": found["chat"],
        "role of the first delta": "assistant",
        "chat finish_reason": "length",
        "chat stream usage": 20,
        "parse": True,
        "unknown model": ["NotFoundError", 404, "model_not_found"],
        "models.retrieve": ["NotFoundError", 404, "model_not_found"],
        "n of a million": ["BadRequestError", 400, None],
        "wrong key": ["AuthenticationError", 401, "invalid_api_key"],
        "suffix": ["BadRequestError", 400, None],
        "tools": ["BadRequestError", 400, None],
        "embeddings": ["NotFoundError", 404, "not_supported"],
        "too long": ["BadRequestError", 400, "context_length_exceeded"],
        "stream of a wrong request": ["BadRequestError", 400, None],
    }
    assert {name: found[name] for name in expected} == expected
    assert (found["stop"]["text"], found["stop"]["finish_reason"]) == (stopped, "stop")
    stop = found["chat"][3:6]
    assert found["chat stop"] == [found["chat"].partition(stop)[0], "stop"]
    assert isinstance(found["json_object"][0], dict)
    assert found["json_schema"][0].keys() == {"saw"}
    assert found["json_object"][1] == found["json_schema"][1] == "stop"
