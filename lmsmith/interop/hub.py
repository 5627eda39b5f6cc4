"""Checkpoints by name from the Hugging Face Hub, through its own library: resumed, cached and
checked by it.

`HF_ENDPOINT` names another server (a mirror), `HF_HUB_CACHE` another place for what was downloaded,
`HF_HUB_OFFLINE=1` keeps to what is there. Only settings, weights as safetensors and the tokenizer
are fetched, all of one revision.
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
    """The folder of a model's files, downloaded once. Raises CheckpointError where they cannot
    be had, UsageError.
    """
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError as error:
        raise _library_missing(name) from error
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    revision: str | None = None
    # By what it reaches the network differs between versions; its own error is always a kind of
    # that library's.
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
        except (
            errors.LocalEntryNotFoundError
        ) as error:  # not downloaded, and the server is not reached
            if needed:
                raise CheckpointError(
                    _unreachable(name, file, endpoint, cut_off or error)
                ) from error
        except errors.EntryNotFoundError as error:
            if needed:
                raise CheckpointError(
                    f"{name} at {endpoint} has no {file}, without which it cannot be read."
                ) from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise CheckpointError(
                f"there is no file or folder {name}, and at {endpoint} no model of this name that "
                f"you may see. Names "
                "are like openai-community/gpt2; for some you must log in there (`hf auth login`)."
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
    """Downloads a file of the model; None where an unneeded one does not exist."""

    def __call__(self, file: str, *, needed: bool) -> Path | None: ...


def _get_weights(get: _Get) -> None:
    """The weights, as one file or as the parts that an index names."""
    if get(WEIGHTS, needed=False) is not None:
        return
    index = get(INDEX, needed=False)
    if index is None:
        get(WEIGHTS, needed=True)  # raises the error that says why
        return
    for part in sorted(set(weight_map(index.parent).values())):
        get(part, needed=True)


def _library_missing(name: str) -> UsageError:
    return UsageError(
        f"there is no file or folder {name}, and to get a model of this name from the Hub "
        f"takes huggingface_hub: "
        "pip install 'lmsmith[hf]'."
    )


def check(file: Path, sha256: str) -> None:
    """Holds a downloaded file against the hash by which the Hub knows large ones. Raises
    CheckpointError.
    """
    known = file.resolve().name  # in the library's cache, a link to a file named so
    if re.fullmatch(r"[0-9a-f]{64}", known) and known != sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is not the one at the Hub. Remove it and import again."
        )


def _cut_off(endpoint: str) -> str | None:
    """Why the server cannot be reached, if so. Asked once: the library would try each file for
    half a minute.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _unreachable(name: str, file: str, endpoint: str, error: object) -> str:
    return (
        f"there is no file or folder {name}, and {file} of a model of this name cannot be had "
        f"from {endpoint} "
        f"({str(error).splitlines()[0]}). Without a network: get its config.json, {WEIGHTS} (or "
        f"{INDEX} and the parts "
        "that it names) and tokenizer.json some other way, put them into a folder, and name the "
        "folder: "
        "`lmsmith import FOLDER`."
    )
