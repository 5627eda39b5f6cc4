"""Peak memory of importing a large checkpoint: `python benchmarks/import_memory.py [GB]`.

Writes a random Llama checkpoint (1.5 GB by default) and imports it in a process of its own. Prints
the peak of that process, including the interpreter and torch: all resident memory, of which pages
of the memory-mapped checkpoint can be dropped by the kernel at any time; and the rest. Linux only.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from lmsmith.config.presets import preset
from lmsmith.interop.huggingface import write
from lmsmith.interop.sharding import bytes_of

IMPORT = (
    "import sys; from lmsmith.interop.importing import import_model; from pathlib import Path; "
    "import_model(sys.argv[1], out=Path(sys.argv[2]), tokenizer='none')"
)


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


n_bytes = bytes_of(f"{sys.argv[1] if len(sys.argv) > 1 else 1.5}GB")
sizes = {"n_layer": 1, "n_head": 16, "d_model": 1024, "vocab_size": 32_000, "context_length": 1024}
config = preset("llama").changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model
a_layer = 4 * (4 * 1024**2 + 3 * 1024 * config.width_ff)  # type: ignore[attr-defined]
n_layer = round((n_bytes - 4 * 2 * 32_000 * 1024) / a_layer)
config = (
    preset("llama")
    .changed({f"model.{k}": v for k, v in (sizes | {"n_layer": n_layer}).items()}, where="here")
    .model
)
with tempfile.TemporaryDirectory() as folder:
    theirs = Path(folder) / "theirs"
    theirs.mkdir()
    with torch.no_grad():
        weights = {name: p.data for name, p in config.build().named_parameters()}  # type: ignore[attr-defined]
        write(theirs, config, weights)
    del weights
    size = sum(file.stat().st_size for file in theirs.glob("*.safetensors"))
    resident, anonymous = peaks([sys.executable, "-c", IMPORT, str(theirs), f"{folder}/run"])
    idle, _ = peaks([sys.executable, "-c", IMPORT.partition("import_model(sys")[0]])
print(
    f"checkpoint {size / 1e9:.2f} GB; peak resident {resident / 1e9:.2f} GB "
    f"({resident / size:.2f} times), without file pages {anonymous / 1e9:.2f} GB "
    f"({anonymous / size:.2f} times); torch and lmsmith alone {idle / 1e9:.2f} GB"
)
