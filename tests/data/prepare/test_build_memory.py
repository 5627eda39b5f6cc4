"""Text larger than the memory that preparation may use."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith.data.manifest import read_manifest
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import save_tokenizer

pytestmark = pytest.mark.slow

# Prepares, then prints the peak memory of this process, and of its largest child process, in
# MB.
PROGRAM = """
import resource, sys
from pathlib import Path
from lmsmith.data.prepare.build import build_shards
if __name__ == "__main__":
    build_shards([sys.argv[1]], Path(sys.argv[2]), tokenizer=sys.argv[3], dedup="exact", workers=int(sys.argv[4]))
    status = Path("/proc/self/status").read_text()  # what getrusage says of itself includes who started this process
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print([own // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024])
"""


def lines(n_bytes: int) -> list[bytes]:
    """Some different lines, to be repeated."""
    words = [f"word{i}" for i in range(3000)]
    chance = random.Random(0)
    made = [
        (" ".join(chance.choices(words, k=60)) + f" \u2014 {i}.\n").encode() for i in range(2000)
    ]
    return made * (n_bytes // sum(map(len, made)) + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
@pytest.mark.parametrize("workers", [1, 2])
def test_large_files_stream(tmp_path: Path, workers: int) -> None:
    """A plain file of 160 MB, one of 100 MB that is compressed, and 60 MB of lines."""
    source = tmp_path / "texts"
    source.mkdir()
    save_tokenizer(
        learn_bpe([b"".join(lines(100_000))], 600, special_tokens=["<|endoftext|>"]),
        tmp_path / "bpe",
    )
    with (source / "a.txt").open("wb") as file:
        file.writelines(lines(160_000_000))
    with gzip.open(source / "b.txt.gz", "wb", compresslevel=1) as file:
        file.writelines(lines(100_000_000))
    with (source / "c.jsonl").open("w") as file:
        for number, line in enumerate(lines(60_000_000)):
            file.write(json.dumps({"text": f"{number} {line.decode()}"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, tmp_path / "out", tmp_path / "bpe", str(workers)],
        check=True,
        capture_output=True,
        text=True,
    )
    mine, children = json.loads(done.stdout)
    assert mine < 420, mine
    assert children < 420, children
    manifest = read_manifest(tmp_path / "out")
    assert sum(split.n_bytes for split in manifest.splits.values()) > 320_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="files are many")
def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    source = tmp_path / "texts"
    for folder in range(100):
        (source / f"{folder:02}").mkdir(parents=True)
        for number in range(1000):
            (source / f"{folder:02}" / f"{number:03}.txt").write_text(
                f"text {number} of folder {folder}"
            )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, tmp_path / "out", "byte", "2"],
        check=True,
        capture_output=True,
        text=True,
    )
    mine, _ = json.loads(done.stdout)
    assert mine < 500, mine
    manifest = read_manifest(tmp_path / "out")
    assert sum(split.n_documents for split in manifest.splits.values()) == 100_000
    assert len(manifest.sources) == 100_000
