"""Downloads checkpoints from the Hugging Face Hub by name, using huggingface_hub, which resumes,
caches and verifies downloads.

Environment variables: `HF_ENDPOINT` sets another server (a mirror), `HF_HUB_CACHE` the cache
folder, and `HF_HUB_OFFLINE=1` uses only the cache. Only the settings, safetensors weights and the
tokenizer are downloaded, all from the same revision.
"""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from lmsmith.errors import CheckpointError, UsageError
from lmsmith.interop.huggingface import INDEX, WEIGHTS, weight_map

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BESIDES = (
    *(
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    ),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)


def is_name(source: str) -> bool:
    """Whether this can be the name of a model on the Hub: `gpt2`, `openai-community/gpt2`."""
    return _NAME.fullmatch(source) is not None and ".." not in source and not source.startswith(".")


def fetch(name: str) -> Path:
    """Downloads a model's files unless they are cached; returns their folder.

    Raises CheckpointError if they are not available, UsageError without huggingface_hub.
    """
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError as error:
        raise _library_missing(name) from error
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    revision: str | None = None
    # The HTTP library that huggingface_hub uses differs between versions. HfHubHTTPError always
    # derives from that library's errors.
    network: tuple[type[Exception], ...]
    network = (
        OSError,
        *(kind for kind in errors.HfHubHTTPError.__mro__ if not issubclass(Exception, kind)),
    )
    cut_off = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _cut_off(endpoint)

    def get(file: str, *, needed: bool) -> Path | None:
        try:
            path = hf_hub_download(
                name,
                file,
                revision=revision,
                endpoint=endpoint,
                local_files_only=cut_off is not None,
            )
            return Path(path)
        except errors.LocalEntryNotFoundError as error:  # not cached, and no connection
            if needed:
                raise CheckpointError(
                    _unreachable(name, file, endpoint, cut_off or error)
                ) from error
        except errors.EntryNotFoundError as error:
            if needed:
                raise CheckpointError(
                    f"{name} at {endpoint} has no {file}, which is required to import it."
                ) from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise CheckpointError(
                f"there is no file or folder {name}, and at {endpoint} no model of this name that "
                "you have access to. Names look like openai-community/gpt2; some models require a "
                "login (`hf auth login`)."
            ) from error
        except network as error:
            raise CheckpointError(_unreachable(name, file, endpoint, error)) from error
        return None

    config = get("config.json", needed=True)
    assert config is not None
    revision = config.parent.name
    _get_weights(get)
    for file in _BESIDES:
        get(file, needed=False)
    return config.parent


class _Get(Protocol):
    """Downloads a file of the model. None if it does not exist and is not needed."""

    def __call__(self, file: str, *, needed: bool) -> Path | None: ...


def _get_weights(get: _Get) -> None:
    """Downloads the weights: one file, or the shards that an index names."""
    if get(WEIGHTS, needed=False) is not None:
        return
    index = get(INDEX, needed=False)
    if index is None:
        get(WEIGHTS, needed=True)  # raises an error with the reason
        return
    for part in sorted(set(weight_map(index.parent).values())):
        get(part, needed=True)


def _library_missing(name: str) -> UsageError:
    return UsageError(
        f"there is no file or folder {name}, and downloading a model of this name from the Hub "
        "needs huggingface_hub: pip install 'lmsmith[hf]'."
    )


def check(file: Path, sha256: str) -> None:
    """Compares a file's SHA-256 with the Hub's, for large files in the cache. Raises
    CheckpointError if they differ.
    """
    known = file.resolve().name  # the cache links to a file that is named after its hash
    if re.fullmatch(r"[0-9a-f]{64}", known) and known != sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {sha256[:12]}..., expected {known[:12]}... as on "
            "the Hub. Remove it and import again."
        )


def _cut_off(endpoint: str) -> str | None:
    """Why the server cannot be reached; None if it can. Tested once, because the library would
    retry for half a minute per file.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return None  # the server responds
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _unreachable(name: str, file: str, endpoint: str, error: object) -> str:
    return (
        f"there is no file or folder {name}, and {file} of a model of this name cannot be "
        f"downloaded from {endpoint} ({str(error).splitlines()[0]}). Without a network, copy the "
        f"model's config.json, {WEIGHTS} (or {INDEX} and the shards that it names) and "
        "tokenizer.json to a folder, and run `lmsmith import FOLDER`."
    )
