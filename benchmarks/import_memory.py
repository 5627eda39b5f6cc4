"""Peak memory of importing a large checkpoint: `python benchmarks/import_memory.py [GB] [FORM]`.

Writes a random Llama checkpoint (1.5 GB by default) and imports it in a process of its own. FORM is
safetensors (the default), or a type of GGUF: f32, f16, bf16 or q8_0. Prints the peak of that
process, including the interpreter and torch: all resident memory, of which the kernel can drop
pages of the memory-mapped checkpoint at any time; and anonymous memory alone. Linux only.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lmsmith.config.presets import preset
from lmsmith.interop import gguf_exporting, gguf_models
from lmsmith.interop.huggingface import write
from lmsmith.interop.sharding import bytes_of

IMPORT = (
    "import sys; from lmsmith.interop.importing import import_model; from pathlib import Path; "
    "import_model(sys.argv[1], out=Path(sys.argv[2]), tokenizer='none')"
)
BYTES = {"safetensors": 4, "f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}  # of a number


def peaks(command: list[str]) -> tuple[float, float]:
    """Runs a command; returns its peak resident and peak anonymous memory, in bytes."""
    process = subprocess.Popen(command)
    resident = anonymous = 0.0

    def watch() -> None:
        nonlocal resident, anonymous
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            kb = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
            hwm = next((line.split()[1] for line in lines if line.startswith("VmHWM")), "0")
            resident = max(resident, 1024 * float(hwm))
            anonymous = max(anonymous, 1024 * float(kb.get("RssAnon", 0)))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise SystemExit("the import failed")
    watcher.join()
    return resident, anonymous


def config_of(n_bytes: float, form: str) -> Any:
    """A Llama whose checkpoint has about that size."""
    sizes = {"n_layer": 1, "n_head": 16, "d_model": 1024, "vocab_size": 32_000}
    sizes |= {"context_length": 1024, "d_ff": 2816}
    a_layer = 4 * 1024**2 + 3 * 1024 * sizes["d_ff"]
    sizes["n_layer"] = round((n_bytes / BYTES[form] - 2 * 32_000 * 1024) / a_layer)
    return preset("llama").changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model


def written(folder: Path, config: Any, form: str) -> Path:
    """Writes the checkpoint with random weights; returns what to import."""
    weights = {name: p.data for name, p in config.build().named_parameters()}
    if form == "safetensors":
        write(folder, config, weights)
        return folder
    path = folder / "model.gguf"
    metadata = dict(gguf_models.metadata("llama", config))
    gguf_exporting._write(path, "llama", metadata, config, weights, form)
    return path


def main() -> None:
    n_bytes = bytes_of(f"{sys.argv[1] if len(sys.argv) > 1 else 1.5}GB")
    form = sys.argv[2] if len(sys.argv) > 2 else "safetensors"
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "theirs"
        theirs.mkdir()
        with torch.no_grad():
            source = written(theirs, config_of(n_bytes, form), form)
        size = sum(file.stat().st_size for file in theirs.iterdir())
        resident, anonymous = peaks([sys.executable, "-c", IMPORT, str(source), f"{folder}/run"])
        idle, _ = peaks([sys.executable, "-c", IMPORT.partition("import_model(sys")[0]])
    print(
        f"{form} of {size / 1e9:.2f} GB; peak resident {resident / 1e9:.2f} GB "
        f"({resident / size:.2f} times), anonymous {anonymous / 1e9:.2f} GB "
        f"({anonymous / size:.2f} times); torch and lmsmith alone {idle / 1e9:.2f} GB"
    )


main()
