"""What is published: the wheel installs in a fresh environment, and the project's files agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lmsmith

PROJECT = Path(__file__).resolve().parent.parent


def test_extra_all_names_extras_that_exist() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.findall(r"\[(.*)\]", everything)[0].split(","))
    assert named == set(extras) - {"all", "dev", "hub"}  # hub: the old name of hf


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == lmsmith.__version__
    assert citation["license"] == "MIT"


def test_forge_files_are_valid_yaml() -> None:
    files = [PROJECT / ".pre-commit-config.yaml", *PROJECT.glob(".github/**/*.yml")]
    assert len(files) >= 5
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file


@pytest.mark.slow
def test_wheel_works_in_a_fresh_environment(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    files = run("git", "-C", PROJECT, "ls-files").splitlines()
    for file in files:  # a copy: setuptools would leave build/ in the project
        (tmp_path / "project" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / file, tmp_path / "project" / file)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "project")
    (wheel,) = tmp_path.glob("lmsmith-*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "lmsmith/py.typed" in inside
    assert not [name for name in inside if not name.startswith(("lmsmith/", "lmsmith-"))]
    packaged = {file for file in files if file.startswith("lmsmith/")}
    assert packaged <= set(inside)  # data files too

    run(sys.executable, "-m", "venv", "fresh")
    python = tmp_path / "fresh" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Only PyTorch is pinned, to a wheel without CUDA: pip chooses the rest, as for a user.
    pins = (PROJECT / "constraints.txt").read_text().splitlines()
    (tmp_path / "pins.txt").write_text("\n".join(pin for pin in pins if pin.startswith("torch==")))
    run(*install, "--constraint", tmp_path / "pins.txt", f"{wheel}[all]")
    lmsmith_command = tmp_path / "fresh" / "bin" / "lmsmith"
    assert lmsmith.__version__ in run(lmsmith_command, "--version")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 400)
    run(lmsmith_command, "train", "text.txt", "--steps", "20", "--out", "run")
    assert (tmp_path / "run" / "report.html").is_file()
    written = run(lmsmith_command, "generate", "run", "the ", "--max-tokens", "20")
    assert written.startswith("the ")
    origin = run(python, "-c", "import lmsmith; print(lmsmith.__file__)")
    assert str(tmp_path / "fresh") in origin
    run(python, "-c", "import lmsmith; print(lmsmith.Run('run').metrics.frame().shape)")
