"""The same folder from a Ray cluster of two machines (both simulated here), even if a worker is
killed.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lmsmith.data.prepare import build, encode, plan
from lmsmith.data.prepare.build import build_shards
from lmsmith.errors import ConfigError, DataError

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and two machines with one each."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan, "UNIT_BYTES", (20_000, 20_000))
    monkeypatch.chdir(tmp_path)  # workers resolve paths relative to this folder
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(300):
        (folder / f"{i:03}.txt").write_text(
            f"text number {i % 280} of some length; " * (30 + i % 40), encoding="utf-8"
        )
    return Path("texts")


def prepare(source: Path, out: str, **options) -> None:
    settings = {
        "tokenizer": "bpe:300",
        "shard_tokens": 20_000,
        "validation_fraction": 0.1,
        "dedup": "exact",
    }
    build_shards([str(source)], Path(out), **{**settings, **options})


def _slow(job, number, unit):
    """Writes its process id to the folder, then works slowly."""
    Path(job.folder, f"at-work-{number}-{os.getpid()}").touch()
    time.sleep(0.3)
    encode.encode_unit(job, number, unit)


def test_a_killed_worker_is_replaced(cluster, source, monkeypatch):
    import ray

    prepare(source, "local", workers=1)
    ray.init(address=cluster.address, log_to_driver=False)
    monkeypatch.setattr(build, "encode_unit", _slow)
    killed = []

    def kill() -> None:
        while len(killed) < 2:
            at_work = list(Path("remote.partial/work").glob("at-work-*"))
            if len(at_work) > 5 * (1 + len(killed)):
                process = int(max(at_work, key=os.path.getmtime).name.split("-")[-1])
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    prepare(source, "remote", engine="ray")
    killer.join(timeout=1)
    assert len(killed) == 2
    assert contents(Path("remote")) == contents(Path("local"))


def _bad(job, number, unit):
    raise DataError(f"unit {number} is bad")


def test_errors_in_the_text_are_reported_unchanged(cluster, source, monkeypatch):
    import ray

    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False)
    monkeypatch.setattr(build, "encode_unit", _bad)
    with pytest.raises(DataError) as caught:
        prepare(source, "remote", engine="ray")
    assert str(caught.value).endswith("is bad")
    assert "Traceback" not in str(caught.value)
    monkeypatch.setattr(build, "encode_unit", encode.encode_unit)
    prepare(source, "remote", engine="ray")  # it resumes
    prepare(source, "local", workers=2)
    assert contents(Path("remote")) == contents(Path("local"))


def test_without_a_cluster(source, monkeypatch):
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr(
        ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no cluster"))
    )
    with pytest.raises(ConfigError, match="no Ray cluster is running here"):
        prepare(source, "remote", engine="ray")
