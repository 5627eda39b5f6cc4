"""A server on this machine in the place of the Hugging Face Hub, for the pages that download."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet
from web_server import COMMIT, Web, serving

SERVED = (
    "tinystories",
    "tinystories-validation",
    "openai-community/gpt2",
    "HuggingFaceTB/SmolLM2-135M",
)
"""Names on the pages that it has, with small content."""


@contextmanager
def hub(folder: Path, lmsmith: Any) -> Iterator[dict[str, str]]:
    """Serves TinyStories from web.jsonl and one small model; yields what commands need to reach it."""
    model = folder / "served-model"
    make_model(model, lmsmith)
    lines = (folder / "web.jsonl").read_text(encoding="utf-8").splitlines()
    table = pyarrow.table({"text": [json.loads(line)["text"] for line in lines] * 2})
    pyarrow.parquet.write_table(table, folder / "served.parquet")
    content = (folder / "served.parquet").read_bytes()
    with serving() as web:
        files = {"data/validation-0.parquet": content, "data/train-0.parquet": content}
        web.add_dataset("roneneldan/TinyStories", files)
        serve_model(web, model)
        yield {
            "HF_ENDPOINT": web.url,
            "HF_HOME": str(folder / "hf"),
            "LMSMITH_DATA": str(folder / "corpora"),
            "no_proxy": "*",
        }


def make_model(folder: Path, lmsmith: Any) -> None:
    """A GPT-2 of one layer in Hugging Face's format."""
    size = ["--model.n_layer=1", "--model.d_model=16", "--model.n_head=2"]
    size += ["--model.context_length=64", "--train.batch_size=2", "--tokenizer=byte"]
    words = ["train", "book.txt", "--preset=gpt2", "--steps=1", "--out=served-run", *size]
    for command in (words, ["export", "served-run", "--to=hf", f"--out={folder}"]):
        done = lmsmith(*command)
        assert done.status == 0, done.err


def serve_model(web: Web, folder: Path) -> None:
    """Serves the files of a folder as those of every model, at any revision."""

    class WithModels(web.server.RequestHandlerClass):  # type: ignore[name-defined, misc]
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if "/resolve/" not in path or path.startswith("/datasets/"):
                return super().do_GET()
            file = folder / path.rpartition("/")[2]
            if not file.is_file():
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
                return self.answer(404, b"", headers)
            body = file.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self.answer(200, body, {"ETag": tag, "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

    web.server.RequestHandlerClass = WithModels
