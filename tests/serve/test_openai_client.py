"""The `openai` package as the client, in an environment of its own."""

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from other_versions import python_with
from running import serving

from lmsmith.api import LM


@pytest.mark.slow
def test_every_call_of_openais_client(request: pytest.FixtureRequest, folder: Path, lm: LM) -> None:
    python = python_with("openai", request)
    with serving([folder / "run"], api_key="key") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        script = Path(__file__).with_name("openai_client.py")
        done = subprocess.run(
            [python, script, url, "key"], capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sampled = {"max_tokens": 20, "temperature": 0.9, "seed": 5}
    texts = lm.generate_batch(["The cat"], n=2, **sampled)[0]  # type: ignore[arg-type]
    assert found["models"] == ["run"]
    assert found["model"] == "run"
    assert found["texts"] == texts
    assert found["tokens"] == found["streamed"] == texts[0]
    assert found["echo"] == "The" + lm.generate("The", **sampled)  # type: ignore[arg-type]
    assert found["usage"] == 0
    assert found["chat"] == found["chat_streamed"]
    assert (found["role"], found["finish"]) == ("assistant", "length")
    assert found["alternatives"] is True
    assert found["stream_usage"] is True
    assert found["errors"] == {
        "404": ["NotFoundError", 404, True],
        "400": ["BadRequestError", 400, True],
        "401": ["AuthenticationError", 401, True],
        "tools": ["BadRequestError", 400, True],
        "embeddings": ["NotFoundError", 404, True],
    }
