"""Separate environments for packages with conflicting versions, created once and kept for
later test runs.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from filelock import FileLock


def python_with(requirement: str, folder: Path) -> Path:
    """The interpreter of an environment in `folder` that has `requirement`, as in
    "transformers>=5,<6". Several are separated by spaces.

    Other packages (torch, NumPy) come from the environment that runs the tests.
    """
    key = hashlib.sha256(f"{requirement} {sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    place = folder / key
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with FileLock(folder / f"{key}.lock"):
        if not (place / "ready").exists():
            venv.create(place, with_pip=True, clear=True)
            paths = {"base": str(place), "platbase": str(place)}
            own = Path(sysconfig.get_path("purelib", "venv", paths))
            (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", *requirement.split()], check=True
            )
            (place / "ready").touch()
    return python
