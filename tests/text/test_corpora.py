"""Named corpora: the built-in list, downloads from a server on this machine, and remote reading."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from web_server import COMMIT, Web, serving

from lmsmith.errors import DataError, StorageError
from lmsmith.text import corpora, download, hub, store
from lmsmith.text.corpora import CORPORA, Corpus, File, HubFiles, format_size
from lmsmith.text.documents import Documents

pytest.importorskip("huggingface_hub")

POEM = "Tyger Tyger, burning bright,\nIn the forests of the night;\n" * 40
SHARDS = {f"train_{n}.bin": random.Random(n).randbytes(5000) for n in (1, 2, 3)} | {
    "val_0.bin": b"validation"
}


def parquet(texts: list[str], folder: Path, rows: int = 7) -> bytes:
    path = folder / "made.parquet"
    table = pyarrow.table(
        {"id": list(range(len(texts))), "text": texts, "url": ["http://" + "x" * 50] * len(texts)}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=rows, compression="none")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    """No test here may reach the real Hub."""
    with serving() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("LMSMITH_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(download, "PAUSES", (0.01,) * 7)
        yield web


@pytest.fixture
def poem(web: Web, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus at a fixed address."""
    checksum = f"sha256:{hashlib.sha256(POEM.encode()).hexdigest()}"
    files = (File(web.add("/poems/tyger.txt", POEM.encode()), len(POEM), checksum),)
    corpus = Corpus("poem", "text", "a poem", "public domain", "https://example.org", files)
    monkeypatch.setitem(CORPORA.known, "poem", corpus)
    return corpus


@pytest.fixture
def shards(web: Web, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus of files on the Hub."""
    web.add_dataset("me/shards", {**SHARDS, "README.md": b"read me"})
    files = HubFiles("me/shards", ("*val*.bin", "*train*.bin"), 15_010)
    corpus = Corpus("some-shards", "shards", "noise", "none", "https://example.org", files)
    monkeypatch.setitem(CORPORA.known, "some-shards", corpus)
    return corpus


@pytest.fixture
def stories(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Corpus:
    """Parquet text on the Hub: 30 documents in 3 files, in their own folder."""
    files = {}
    for n in range(3):
        files[f"data/sample/{n}.parquet"] = parquet(
            [f"story {10 * n + k}: {POEM}" for k in range(10)], tmp_path
        )
    web.add_dataset(
        "me/stories",
        {**files, "data/other/9.parquet": parquet(["no"], tmp_path), "data/sample/x": b"no"},
    )
    corpus = Corpus(
        "stories",
        "text",
        "stories",
        "none",
        "https://example.org",
        HubFiles("me/stories", ("data/sample/*.parquet",), 1),
    )
    monkeypatch.setitem(CORPORA.known, "stories", corpus)
    return corpus


def on_disk(folder: Path) -> dict[str, bytes]:
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("corpus.json", ".lock")
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# The list


def test_every_documented_corpus_exists() -> None:
    promised = """tinyshakespeare tinystories wikitext-103 openwebtext fineweb-10BT fineweb fineweb-edu-10BT fineweb-edu
    fineweb10B-gpt2 finewebedu100B-gpt2 hellaswag arc-easy arc-challenge piqa winogrande lambada gsm8k mmlu"""
    for name in promised.split():
        assert corpora.get(name).name == name
        assert corpora.get(name.upper()).name == name


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_fields_of_each_corpus_are_well_formed(corpus: Corpus) -> None:
    assert all(
        (corpus.what, corpus.licence, corpus.homepage.startswith("https://"), corpus.n_bytes > 0)
    )
    if isinstance(corpus.source, HubFiles):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", corpus.source.repo)
        assert corpus.source.revision == "main" or re.fullmatch(
            "[0-9a-f]{40}", corpus.source.revision
        )
        assert not corpus.exact
        return
    for file in corpus.source:
        assert file.checksum
        assert re.fullmatch("sha256:[0-9a-f]{64}|git:[0-9a-f]{40}", file.checksum)
        assert re.match(
            "https://raw.githubusercontent.com/[^/]+/[^/]+/[0-9a-f]{40}/", file.url
        )  # cannot change
        assert file.exact == file.checksum.startswith("sha256")


def test_checksums_and_lengths_match_the_files(test_data: Path) -> None:
    """Compared with copies of the files that others have downloaded."""
    seen = 0
    for corpus in CORPORA.values():
        for file in corpus.source if not isinstance(corpus.source, HubFiles) else ():
            path = test_data / (corpus.name if corpus.kind == "text" else "tasks") / file.name
            if path.exists() and file.exact:
                assert file.checksum == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
                assert file.n_bytes == path.stat().st_size
                seen += 1
    assert seen == 7


def test_an_unknown_name() -> None:
    with pytest.raises(
        DataError, match=r"no corpus 'tinyshakspeare'\. Did you mean tinyshakespeare\?"
    ):
        corpora.get("tinyshakspeare")
    with pytest.raises(DataError, match=r"no corpus 'qqqq'\. `lmsmith data list`"):
        corpora.get("qqqq")


def test_sizes_in_words() -> None:
    sizes = {
        0: "0 bytes",
        999: "999 bytes",
        1000: "1.0 kB",
        1_115_394: "1.1 MB",
        9_960_000: "10 MB",
        44e12: "44 TB",
    }
    assert {n: format_size(n) for n in sizes} == sizes
    assert format_size(2.4e16) == "24000 TB"


# Downloads


def test_the_user_chooses_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.data_folder() == tmp_path / "data"
    monkeypatch.delenv("LMSMITH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.data_folder() == tmp_path / "cache" / "lmsmith" / "corpora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.data_folder() == Path.home() / ".cache" / "lmsmith" / "corpora"


def test_a_small_corpus_is_downloaded_when_named(
    poem: Corpus, web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.here(poem) == ([], 1)
    assert [document.text for document in Documents(["poem"])] == [POEM]
    assert f"downloading poem (2.3 kB) from {web.url}/poems/tyger.txt" in caplog.text
    assert on_disk(tmp_path / "data") == {"poem/tyger.txt": POEM.encode()}
    caplog.clear()
    assert [document.text for document in Documents(["Poem"])] == [POEM]
    assert (len(web.asked), caplog.text) == (1, "")
    assert store.here(poem) == ([tmp_path / "data" / "poem" / "tyger.txt"], 1)


def test_a_file_of_the_same_name_takes_precedence(
    poem: Corpus, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("poem").write_text("mine")
    assert [document.text for document in Documents(["poem"])] == ["mine"]
    assert web.asked == []


def test_shards_and_tasks_are_not_read_as_text(shards: Corpus, tmp_path: Path) -> None:
    folder = re.escape(str(tmp_path / "data" / "some-shards"))
    with pytest.raises(
        DataError, match=f"some-shards is token shards.*lmsmith data download some-shards.*{folder}"
    ):
        Documents(["some-shards"])
    with pytest.raises(DataError, match="gsm8k is a set of evaluation tasks"):
        Documents(["gsm8k"])
    with pytest.raises(DataError, match="Did you mean the corpus tinystories"):
        Documents(["tinystorie"])


def test_a_large_corpus_is_not_downloaded_automatically(web: Web) -> None:
    with pytest.raises(DataError) as error:
        Documents(["fineweb-edu-10BT"])
    assert str(error.value) == (
        "the corpus fineweb-edu-10BT (about 28 GB) is not on this machine. `lmsmith data download "
        "fineweb-edu-10BT` "
        "downloads it, with --files N only its first N files; or read it remotely, without keeping "
        "it: "
        "'hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet'."
    )
    assert web.tokens == []


def test_files_on_the_hub_are_ordered_and_checked(shards: Corpus, web: Web, tmp_path: Path) -> None:
    plan = store.make_plan(shards)
    assert (
        list(plan.entries)
        == plan.missing
        == ["val_0.bin", "train_1.bin", "train_2.bin", "train_3.bin"]
    )
    assert (plan.n_bytes, plan.revision) == (15_010, COMMIT)
    assert on_disk(tmp_path) == {}
    calls: list[tuple[int, int]] = []
    store.fetch(plan, lambda done, total: calls.append((done, total)))
    assert on_disk(tmp_path / "data") == {
        f"some-shards/{name}": content for name, content in SHARDS.items()
    }
    assert calls[-1] == (15_010, 15_010)
    listed = json.loads((tmp_path / "data" / "some-shards" / "corpus.json").read_text())
    assert listed["revision"] == COMMIT
    assert listed["files"]["train_1.bin"] == {
        "n_bytes": 5000,
        "exact": True,
        "checksum": f"sha256:{hashlib.sha256(SHARDS['train_1.bin']).hexdigest()}",
        "checked": True,
    }
    assert listed["files"]["val_0.bin"]["checksum"].startswith("git:")
    tokens = [
        asked
        for asked in web.tokens
        if asked[0].startswith(("/cdn/", "/datasets/", "/api/datasets/"))
    ]
    for path, token in tokens:  # the token goes to the Hub only, not to servers it redirects to
        assert token == ("" if path.startswith("/cdn/") else "Bearer secret"), path
    assert len(tokens) >= 9


def test_later_downloads_use_the_same_commit(shards: Corpus, web: Web, tmp_path: Path) -> None:
    store.fetch(store.make_plan(shards, n_files=2))
    assert sorted(on_disk(tmp_path / "data" / "some-shards")) == ["train_1.bin", "val_0.bin"]
    assert [len(store.here(shards)[0]), store.here(shards)[1]] == [2, 4]
    # the list is not queried again, so it cannot change; the files are at their old addresses
    web.datasets.clear()
    assert store.make_plan(shards, n_files=2).missing == []
    web.datasets["me/shards"] = SHARDS
    web.asked.clear()
    store.fetch(store.make_plan(shards, n_files=3))
    assert len(web.asked) == 1
    assert sorted(on_disk(tmp_path / "data" / "some-shards")) == [
        "train_1.bin",
        "train_2.bin",
        "val_0.bin",
    ]


def test_a_file_that_has_changed_on_the_hub(shards: Corpus, web: Web, tmp_path: Path) -> None:
    """A file that does not match the saved list is not kept; existing files stay."""
    store.fetch(store.make_plan(shards, n_files=2))
    other = random.Random(9).randbytes(5000)
    web.add_dataset("me/shards", {**SHARDS, "train_2.bin": other})
    wanted, found = (
        hashlib.sha256(content).hexdigest() for content in (SHARDS["train_2.bin"], other)
    )
    with pytest.raises(
        DataError,
        match=f"found sha256:{found} .5,000 bytes., expected sha256:{wanted}.*hf download",
    ):
        store.fetch(store.make_plan(shards, n_files=4))
    assert sorted(on_disk(tmp_path / "data" / "some-shards")) == ["train_1.bin", "val_0.bin"]


def test_a_broken_download_resumes(
    shards: Corpus,
    web: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    folder = tmp_path / "data" / "some-shards"
    web.cut_after = [10, 5000, 3000]  # the second file is complete, the third is cut
    with pytest.raises(
        DataError, match=r"ended after 3,000 of 5,000 bytes.*3\.0 kB were downloaded and are kept"
    ):
        store.fetch(store.make_plan(shards))
    assert sorted(on_disk(folder)) == [
        "train_1.bin",
        "train_2.bin.part",
        "train_2.bin.part.json",
        "val_0.bin",
    ]
    plan = store.make_plan(shards)
    assert (plan.missing, plan.n_bytes) == (["train_2.bin", "train_3.bin"], 7000)
    calls: list[tuple[int, int]] = []
    store.fetch(plan, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (7000, 7000)
    assert on_disk(folder) == SHARDS
    web.honours_range = False
    (folder / "train_3.bin").unlink()
    web.cut_after = [1000]
    with pytest.raises(DataError):
        store.fetch(store.make_plan(shards))
    store.fetch(store.make_plan(shards), lambda done, total: calls.append((done, total)))
    assert calls[-1] == (5000, 5000)  # 4000 were planned
    assert on_disk(folder) == SHARDS


def test_an_unknown_checksum_is_recorded(
    poem: Corpus, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust on first use."""
    assert isinstance(poem.source, tuple)
    unknown = replace(poem, source=(replace(poem.source[0], checksum=None, n_bytes=2000),))
    monkeypatch.setitem(CORPORA.known, "poem", unknown)
    assert unknown.size == "about 2.0 kB"
    (path,) = store.obtain(unknown)
    assert (
        json.loads((path.parent / "corpus.json").read_text())["files"]["tyger.txt"]["checksum"]
        == poem.source[0].checksum
    )
    path.unlink()
    web.add("/poems/tyger.txt", POEM.lower().encode())
    with pytest.raises(DataError, match="is not the expected file"):
        store.obtain(unknown)
    assert not path.exists()


def test_the_built_in_list_overrides_the_saved_list(
    poem: Corpus, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = store.obtain(poem)
    other = POEM.upper().encode()
    checksum = f"sha256:{hashlib.sha256(other).hexdigest()}"
    mended = replace(poem, source=(File(web.add("/poems/tyger.txt", other), len(other), checksum),))
    monkeypatch.setitem(CORPORA.known, "poem", mended)
    with pytest.raises(
        DataError, match=f"tyger.txt is not the expected file: .* expected {checksum}"
    ):
        store.obtain(mended)
    path.unlink()
    store.obtain(mended)
    assert path.read_bytes() == other


def test_a_copy_that_the_user_put_there(poem: Corpus, web: Web, tmp_path: Path) -> None:
    path = tmp_path / "data" / "poem" / "tyger.txt"
    path.parent.mkdir(parents=True)
    path.write_text(POEM[:-1])
    with pytest.raises(DataError, match=r"tyger.txt is not the expected file.*Remove it"):
        store.obtain(poem)
    path.write_text(POEM, newline="")
    assert store.obtain(poem) == [path]
    assert store.here(poem) == ([path], 1)
    assert web.asked == []
    path.write_text("cut short by somebody")
    assert store.here(poem) == ([], 1)


def test_without_network_the_error_names_another_way(
    poem: Corpus, shards: Corpus, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(DataError) as error:
        store.obtain(poem)
    assert str(error.value) == (
        f"cannot download {web.url}/poems/tyger.txt: Connection refused. Check the network and "
        f"try again. To get poem (2.3 kB) another way, put that file at "
        f"{tmp_path / 'data' / 'poem' / 'tyger.txt'}; it is then checked and used."
    )
    with pytest.raises(DataError) as error:
        store.obtain(shards)
    assert str(error.value) == (
        f"cannot read the data set me/shards at {web.url}: Connection refused. Check the network, "
        "or set HF_ENDPOINT to a mirror. To get some-shards (about 15 kB) another way, run "
        "`hf download me/shards --repo-type dataset --revision main --include '*val*.bin' "
        "--include '*train*.bin' --local-dir some-shards` on a machine with network access and "
        "name the folder that it creates instead of the corpus."
    )


def test_without_the_extra(shards: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'lmsmith\[hf\]'.*hf download me/shards"):
        store.obtain(shards)


def test_missing_disk_space_is_found_before_the_download(
    shards: Corpus, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 15_009))
    with pytest.raises(
        StorageError,
        match=r"some-shards needs 15 kB more and 15 kB are free at .*LMSMITH_DATA.*--files",
    ):
        store.fetch(store.make_plan(shards))
    assert web.asked == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1, "corpus": "poem", "revision": "", "files": {"a": {}}}']
)
def test_an_invalid_list(poem: Corpus, tmp_path: Path, content: str) -> None:
    (tmp_path / "data" / "poem").mkdir(parents=True)
    (tmp_path / "data" / "poem" / "corpus.json").write_text(content)
    with pytest.raises(DataError, match=r"corpus\.json"):
        store.obtain(poem)


def test_a_folder_of_another_corpus(poem: Corpus, shards: Corpus, tmp_path: Path) -> None:
    store.fetch(store.make_plan(poem, tmp_path / "mine"))
    with pytest.raises(DataError, match=r"lists poem in format 1; expected some-shards"):
        store.make_plan(shards, tmp_path / "mine")


def test_processes_that_start_together_download_once(web: Web, tmp_path: Path) -> None:
    """Like the ranks of one run."""
    url = web.add("/shared.txt", POEM.encode())
    waiting: list[str] = []

    def until_both_have_started(_: str) -> None:
        until = time.monotonic() + 60
        while len(waiting) < 1 and time.monotonic() < until:
            waiting.extend(str(path) for path in tmp_path.glob("waits-*"))
            time.sleep(0.005)

    web.before = until_both_have_started
    program = f"""if True:
        import logging, os
        from pathlib import Path
        from lmsmith.text import store
        from lmsmith.text.corpora import Corpus, File
        class Waits(logging.Handler):
            def emit(self, record):
                if "waiting" in record.getMessage():
                    Path({str(tmp_path)!r}, f"waits-{{os.getpid()}}").touch()
        logging.getLogger("lmsmith").addHandler(Waits())
        files = (File({url!r}, {len(POEM)}, "sha256:{hashlib.sha256(POEM.encode()).hexdigest()}"),)
        print(store.obtain(Corpus("shared", "text", "", "", "", files))[0].read_text() == {POEM!r})
    """
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["True\n"] * 2
    assert len(waiting) == 1
    assert len(web.asked) == 1


# Remote reading


def test_remote_reading_equals_local_reading(stories: Corpus, web: Web, tmp_path: Path) -> None:
    remote = list(Documents(["hf://datasets/me/stories/data/sample/*.parquet"]))
    store.fetch(store.make_plan(stories))
    local = list(Documents(["stories"]))
    assert [document.text for document in remote] == [document.text for document in local]
    assert len(local) == 30
    assert remote[13].source == f"hf:/datasets/me/stories@{COMMIT}/data/sample/1.parquet:4"
    assert (
        list(Documents([f"hf://datasets/me/stories@{COMMIT}/data/sample/1*"]))[3].text
        == remote[13].text
    )


def test_only_the_parts_that_are_read_are_downloaded(web: Web, tmp_path: Path) -> None:
    """One column of a Parquet file, not the full file."""
    texts = ["a", "b"]
    path = tmp_path / "wide.parquet"
    noise = random.Random(1).randbytes(8_000_000)
    table = pyarrow.table({"before": [noise] * 2, "text": texts, "after": [noise] * 2})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    web.add_dataset("me/wide", {"wide.parquet": path.read_bytes()})
    assert [document.text for document in Documents(["hf://datasets/me/wide/*"])] == texts
    fetched = sum(
        int(last) + 1 - int(first)
        for _, ranged in web.asked
        for first, last in re.findall(r"(\d+)-(\d+)", ranged)
    )
    assert 0 < fetched < path.stat().st_size / 4


def test_remote_plain_and_compressed_text(web: Web) -> None:
    import gzip

    web.add_dataset(
        "me/text", {"a.txt": POEM.encode(), "b.txt.gz": gzip.compress(POEM.upper().encode(), 0)}
    )
    texts = [document.text for document in Documents(["hf://datasets/me/text/*"])]
    assert texts == [POEM, POEM.upper()]


@pytest.mark.parametrize(
    "source", ["hf://me/stories/x", "hf://datasets/me/stories", "hf://datasets/me/stories/"]
)
def test_an_invalid_hub_path(source: str) -> None:
    with pytest.raises(DataError, match="expected hf://datasets/OWNER/NAME/PATTERN"):
        Documents([source])


def test_names_that_do_not_exist_on_the_hub(stories: Corpus) -> None:
    with pytest.raises(DataError, match="the name is wrong, or it requires an account"):
        hub.find_remote("hf://datasets/you/stories/*.parquet")
    with pytest.raises(DataError, match=r"me/stories on the Hub has no file data/\*\.txt"):
        hub.find_remote("hf://datasets/me/stories/data/*.txt")
    with pytest.raises(DataError, match="a file or revision is missing"):
        hub.find_remote("hf://datasets/me/stories@elsewhere/*")
    with pytest.raises(DataError, match="is not a valid name on the Hub"):
        hub.find_remote("hf://datasets/me/a--b/*")


def test_the_network_fails_during_remote_reading(
    stories: Corpus, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.hf_file_system as library

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the network is down")

    documents = iter(Documents(["hf://datasets/me/stories/data/sample/*.parquet"]))
    next(documents)
    monkeypatch.setattr(library, "http_backoff", gone)
    with pytest.raises(
        DataError,
        match=r"cannot read hf:/datasets/me/stories@.*1\.parquet at .*: the network is down",
    ):
        list(documents)


def test_shards_from_remote_files_equal_those_from_local_files(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data prepare` reads remote files too: in parts, and large plain files in pieces."""
    from lmsmith.data.prepare import plan, units
    from lmsmith.data.prepare.build import build_shards

    monkeypatch.setattr(plan, "UNIT_BYTES", (3000, 3000))
    for module in (plan, units):
        monkeypatch.setattr(module, "LARGE", 5000)
    lines = "".join(json.dumps({"text": f"line {n}: {POEM[:200]}"}) + "\n" for n in range(70))
    files = {
        "a/lines.jsonl": lines.encode(),
        "a/rows.parquet": parquet([f"row {n}: {POEM[:300]}" for n in range(30)], tmp_path),
        "a/plain.txt": POEM.encode() * 10,
        "a/small.txt": b"a word",
    }
    web.add_dataset("me/mixed", files)
    for name, content in files.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
    sources = {"near": [str(tmp_path / "here" / "a" / "*")], "afar": ["hf://datasets/me/mixed/a/*"]}
    manifests = [
        build_shards(sources[name], tmp_path / name, tokenizer="byte", workers=1)
        for name in sources
    ]
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.bin")}
        for name in sources
    ]
    assert shards[0] == shards[1]
    assert len(shards[0]) == 2
    assert [source.fingerprint for source in manifests[0].sources] == [
        source.fingerprint for source in manifests[1].sources
    ]
    assert [Path(source.path).name for source in manifests[1].sources] == sorted(
        Path(name).name for name in files
    )
