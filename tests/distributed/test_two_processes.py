"""Complete runs of two real processes under torchrun against runs of one: the same losses, and
interchangeable checkpoints.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmsmith.checkpoint import load_checkpoint

PROJECT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
FORKS: "Forks | None" = None
TEXT = (
    "".join(
        f"{who} {did} the {it}.\n"
        for who in ("A", "Bo")
        for did in ("saw", "hid", "ate")
        for it in "xyzuv"
    )
    * 20
)
TINY = [
    *(
        "--model.n_layer",
        "2",
        "--model.d_model",
        "16",
        "--model.n_head",
        "2",
        "--model.context_length",
        "16",
    ),
    *(
        "--model.ngram_table_size",
        "64",
        "--train.batch_size",
        "4",
        "--train.matmul",
        "default",
        "--train.threads",
        "1",
    ),
    *(
        "--train.dtype",
        "float64",
        "--train.log_every",
        "1",
        "--train.eval_every",
        "4",
        "--train.save_every",
        "4",
    ),
    *("--steps", "12", "--keep", "9"),
]


class Forks:
    """`forked.py`, which starts a run's ranks without importing torch for each."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "forked.py")],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its ranks can be ended with it
        )
        assert self._read() == "ready"

    def run(
        self, cwd: Path, words: Sequence[str], n: int, script: str | None
    ) -> subprocess.CompletedProcess[str]:
        said = Path(tempfile.mkdtemp(dir=cwd.parent, prefix="said")) / "rank"
        order = {"words": words, "script": script, "n": n, "cwd": str(cwd), "said": str(said)}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        status = int(self._read())
        out, err = (said.with_suffix(end).read_text(encoding="utf-8") for end in (".out", ".err"))
        return subprocess.CompletedProcess(words, status, out, err)

    def _read(self) -> str:
        if not select.select([self.server.stdout], [], [], 240)[0]:
            self.end()
            raise AssertionError("the ranks are still running after 240 s")
        return self.server.stdout.readline().strip()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.communicate()


@pytest.fixture(scope="module", autouse=sys.platform == "linux")
def forks() -> Iterator[None]:
    global FORKS
    FORKS = Forks()
    yield
    FORKS.end()
    FORKS = None


def lmsmith(
    cwd: Path,
    *words: str,
    n: int = 1,
    torchrun: Sequence[str] | None = None,
    script: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `lmsmith WORDS` or a script on n ranks: by torchrun with its options, or as forks."""
    if torchrun is None and FORKS is not None:
        return FORKS.run(cwd, words, n, script)
    launcher = (
        *("-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(n), *(torchrun or ())),
    )
    program = [script] if script else ["-m", "lmsmith"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *program, *words],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # ranks outlive a killed torchrun
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def losses(run: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (line["kind"], line["step"], line.get("loss", line.get("val_loss")))
        for line in lines
        if line["kind"] != "event"
    ]


def same(
    found: list[tuple[str, int, float]], wanted: list[tuple[str, int, float]], rel: float
) -> None:
    assert [line[:2] for line in found] == [line[:2] for line in wanted]
    assert [line[2] for line in found] == pytest.approx([line[2] for line in wanted], rel=rel)


def trained(cwd: Path, name: str, *options: str, n: int = 1, **how: Any) -> Path:
    done = lmsmith(cwd, "train", "text.txt", *TINY, *options, "--out", name, n=n, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd / name


def back_to(run: Path, step: int) -> None:
    """Puts the run back to as if it had been killed right after that step's checkpoint."""
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_two_processes_have_the_losses_of_one(place: Path) -> None:
    """To 1e-12 in float64, with any micro-batches."""
    alone = trained(place, "alone")
    two = trained(place, "two", "--train.micro_batch_size", "1", n=2, torchrun=())
    same(losses(two), losses(alone), 1e-12)


@pytest.mark.slow
def test_checkpoints_resume_on_another_number_of_processes(place: Path) -> None:
    alone, two = trained(place, "alone"), trained(place, "two", n=2)
    for run in (alone, two):
        back_to(run, 8)
    wanted = losses(alone)
    assert lmsmith(place, "resume", "two").returncode == 0
    done = lmsmith(place, "resume", "alone", n=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming alone at step 8 of 12" in done.stdout
    same(losses(two), wanted, 1e-12)
    same(losses(alone), wanted, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_every_optimizer_under_ddp_and_fsdp(place: Path, how: str, optimizer: str) -> None:
    options = ["--optim.name", optimizer, "--optim.clip_norm", "0.5", "--optim.weight_decay", "0.1"]
    alone = trained(place, "alone", *options)
    two = trained(place, "two", *options, "--train.parallel", how, n=2)
    same(losses(two), losses(alone), 1e-12)


@pytest.mark.slow
def test_from_ddp_to_fsdp_and_on_one(place: Path) -> None:
    """DDP, FSDP2 and one process in a single run give the losses of an undisturbed run, in float32
    to 1e-5.
    """
    alone = trained(place, "alone", "--train.dtype", "float32")
    run = trained(place, "run", "--train.dtype", "float32", n=2)
    for step, how, n in ((4, "fsdp", 2), (8, "ddp", 1)):
        back_to(run, step)
        config = (run / "config.toml").read_text(encoding="utf-8")
        (run / "config.toml").write_text(
            re.sub('parallel = "[a-z]+"', f'parallel = "{how}"', config), encoding="utf-8"
        )
        done = lmsmith(place, "resume", "run", n=n)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"resuming run at step {step} of 12" in done.stdout
    same(losses(run), losses(alone), 1e-5)


@pytest.mark.slow
def test_an_indivisible_batch_size_is_refused_once(place: Path) -> None:
    done = lmsmith(
        place, "train", "text.txt", *TINY, "--train.batch_size", "3", "--out", "run", n=2
    )
    assert done.returncode != 0
    assert "train.batch_size = 3 cannot be divided evenly among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]


@pytest.mark.slow
def test_too_little_memory_in_one_process_halves_the_micro_batches_of_all(place: Path) -> None:
    """And nothing else: the losses are those of one process. If not even one row fits, or under
    FSDP2, an error says what to do.
    """
    options = ["--train.batch_size", "8"]
    alone = trained(place, "alone", *options)
    cramped = str(Path(__file__).parent / "cramped.py")
    words = ["train", "text.txt", *TINY, *options, "--out"]
    done = lmsmith(place, *words, "two", "1", n=2, script=cramped)
    assert done.returncode == 0, done.stderr[-3000:]
    said = (done.stdout + done.stderr).replace("\n", " ")
    assert said.count("micro-batches of 2 rows") == said.count("micro-batches of 1 rows") == 1
    same(losses(place / "two"), losses(alone), 1e-12)
    for name, most, how in (("none", "0", "ddp"), ("sharded", "2", "fsdp")):
        done = lmsmith(place, *words, name, "--train.parallel", how, most, n=2, script=cramped)
        assert done.returncode != 0
        assert "out of memory. Set a smaller --train.micro_batch_size" in done.stderr
    done = lmsmith(
        place, "resume", "sharded", "--train.micro_batch_size", "2", "2", n=2, script=cramped
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same(losses(place / "sharded"), losses(alone), 1e-12)


@pytest.mark.slow
def test_all_ranks_handle_a_spike_identically(place: Path) -> None:
    """Skipped, rolled back, or the run ends: as with one process."""
    script = str(Path(__file__).parent / "spiky.py")
    for mode in ("skip", "rewind"):
        for n in (1, 2):
            words = ["train", "text.txt", *TINY, "--on-spike", mode, "--out", f"{mode}{n}"]
            done = lmsmith(place, *words, n=n, script=script)
            assert done.returncode == 0, done.stderr[-3000:]
            assert "step 7: the gradient norm of" in done.stdout.replace("\n", " ")
        same(losses(place / f"{mode}2"), losses(place / f"{mode}1"), 1e-12)
        assert ("train", 7) not in [line[:2] for line in losses(place / f"{mode}2")]
    done = lmsmith(
        place, "train", "text.txt", *TINY, "--on-spike", "stop", "--out", "stop", n=2, script=script
    )
    assert done.returncode != 0
    assert "Step 6 is saved. `lmsmith replay stop/spikes/step-00000007`" in done.stderr
    assert sorted(path.name for path in (place / "stop" / "spikes").iterdir()) == ["step-00000007"]
    done = lmsmith(place, "replay", "stop/spikes/step-00000007")
    assert "the recorded step ran on several ranks" in done.stdout
    done = lmsmith(place, "resume", "stop", "--on-spike", "skip", n=2, script=script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(place / "stop") == losses(place / "skip2")


@pytest.mark.slow
def test_a_signal_ends_all_ranks_after_a_save(place: Path) -> None:
    longer = [
        *TINY,
        "--steps",
        "300",
        "--model.ngram_dropout",
        "0",
    ]  # each process draws its own dropout masks
    alone = lmsmith(place, "train", "text.txt", *longer, "--out", "alone")
    assert alone.returncode == 0, alone.stderr[-3000:]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "lmsmith", "train", "text.txt", *longer, "--out", "run"],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = place / "run" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") > 20
    ):
        time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=120)[0]
    summary = json.loads((place / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["finished"] == "signal", said
    assert (place / "run" / "checkpoints" / f"step-{summary['steps']:08d}").is_dir()
    done = lmsmith(place, "resume", "run", n=2)
    assert done.returncode == 0, done.stderr[-3000:]
    same(losses(place / "run"), losses(place / "alone"), 1e-11)


@pytest.mark.slow
def test_one_rank_alone_asks_for_a_save_and_for_an_end(place: Path) -> None:
    """Rank 1's clock makes a save due after step 5, and rank 1 alone gets a signal in step 9: both
    ranks save and stop together.
    """
    script = str(Path(__file__).parent / "lopsided.py")
    longer = [*TINY, "--train.save_every", "100", "--steps", "30"]
    done = lmsmith(place, "train", "text.txt", *longer, "--out", "run", n=2, script=script)
    assert (place / "run").exists(), done.stderr[-3000:]
    summary = json.loads((place / "run" / "summary.json").read_text(encoding="utf-8"))
    found = (summary["finished"], summary["signal"], summary["steps"])
    assert found == ("signal", "SIGTERM", 9), done.stderr[-3000:]
    assert sorted(path.name for path in (place / "run" / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000009",
    ]
    done = lmsmith(place, "resume", "run", n=2)
    assert done.returncode == 0, done.stderr[-3000:]
    same(losses(place / "run"), losses(trained(place, "alone", "--steps", "30")), 1e-11)


@pytest.mark.slow
def test_a_lost_process_is_restarted_and_the_run_continues(place: Path) -> None:
    """torchrun's --max-restarts: one of the two is killed after the first save. The weights equal
    those of an undisturbed run.
    """
    alone = trained(place, "alone", n=2)
    words = ["train", "text.txt", *TINY, "--out", "run", "4"]
    done = lmsmith(
        place,
        *words,
        n=2,
        torchrun=["--max-restarts", "1"],
        script=str(Path(__file__).parent / "lost.py"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming run at step 4 of 12" in done.stdout
    assert losses(place / "run") == losses(alone)
    done = lmsmith(place, *words[:-3], n=2, torchrun=["--max-restarts", "1"])
    assert done.returncode != 0
    assert "Name the run's folder with --out RUN" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("rendezvous", "how"), [("static", "fsdp"), ("c10d", "ddp")])
def test_a_lost_process_on_one_of_two_machines_restarts(
    place: Path, how: str, rendezvous: str
) -> None:
    """Started as in `docs/scale.md`, with both machines simulated on this one."""
    alone = trained(place, "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2"]
    if rendezvous == "static":
        nodes += ["--master-addr", "127.0.0.1", "--master-port", port]
    else:
        nodes += [
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            "test",
            "--rdzv-endpoint",
            f"127.0.0.1:{port}",
        ]
    lost = str(Path(__file__).parent / "lost.py")
    words = [lost, "train", "text.txt", *TINY, "--train.parallel", how, "--out", "run", "4"]
    environment = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *nodes),
                *(("--node-rank", str(rank)) if rendezvous == "static" else ()),
                *words,
            ],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "resuming run at step 4 of 12" in said[0] + said[1]
    assert (place / "killed").exists()
    same(losses(place / "run"), losses(alone), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_hooks_of_two_processes(place: Path, how: str) -> None:
    """One on rank 0, one on both, with shards under FSDP2: killed, resumed, and with a hook that
    fails.
    """
    script = str(Path(__file__).parent / "hooked.py")
    for name, words in (("whole", ()), ("parts", ()), ("failed", ("fail",))):
        done = lmsmith(place, "train", "text.txt", how, name, *words, n=2, script=script)
        assert (done.returncode == 0) == (name != "failed"), done.stderr[-3000:]
    assert (
        "the hook 'count' raised ValueError (the fifth) in after_step at step 5. Step 5 is saved"
        in done.stderr
    )
    assert "a hook failed on another rank; see its error message" in done.stderr
    back_to(place / "parts", 3)
    for name in ("parts", "failed"):
        done = lmsmith(place, "resume", name, n=2, script=script)
        assert done.returncode == 0, done.stderr[-3000:]
    wanted, *found = (load_checkpoint(place / name) for name in ("whole", "parts", "failed"))
    assert wanted.tensors["hook_average"].keys() == wanted.tensors["model"].keys()
    for one in found:
        assert {name: of["values"] for name, of in one.state["hooks"].items()} == {
            "average": {"n": 8},
            "count": {"n": 8},
        }
        for group in ("model", "hook_average"):
            assert all(
                tensor.equal(one.tensors[group][name])
                for name, tensor in wanted.tensors[group].items()
            )


@pytest.mark.slow
def test_adapters_have_the_losses_and_weights_of_one_process(place: Path) -> None:
    """LoRA: frozen matrices and learned adapters, with grouped queries and a gated layer."""
    trained(place, "base", "--preset", "qwen3")
    words = ["--from", "base", "--lora.rank", "2", "--lora.targets", "q,v,out,gate,down"]
    settings = [*TINY[TINY.index("--train.batch_size") :], *words]

    def tuned(name: str, *extra: str, n: int) -> Path:
        done = lmsmith(place, "train", "text.txt", *settings, *extra, "--out", name, n=n)
        assert done.returncode == 0, done.stderr[-3000:]
        return place / name

    alone = tuned("alone", n=1)
    base = load_file(place / "base" / "model" / "model.safetensors")
    for how in ("ddp", "fsdp"):
        two = tuned(how, "--train.parallel", how, n=2)
        same(losses(two), losses(alone), 1e-12)
        for file in ("adapter/adapter.safetensors", "model/model.safetensors"):
            found, wanted = load_file(two / file), load_file(alone / file)
            assert found.keys() == wanted.keys()
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, wanted[name], rtol=1e-9, atol=1e-12)
        assert any(not torch.equal(base[name], found[name]) for name in base)
    back_to(two, 8)
    done = lmsmith(place, "resume", two.name, n=2)
    assert done.returncode == 0, done.stderr[-3000:]
    same(losses(two), losses(alone), 1e-12)
