"""Named corpora: description, size, licence, source and checksum of each.

    find("tinyshakespeare").files[0].checksum     "sha256:86c4e6aa..."

A corpus is training text, token shards in llm.c's format, or a set of evaluation tasks. Its files
are at fixed addresses or in a data set of the Hugging Face Hub. `store.py` downloads them and knows
which are on this machine.

A checksum is "sha256:HEX" or "git:HEX". The latter is git's name of a file's content (SHA-1 of
"blob LENGTH\\0" and the content); it is used for files of a git repository whose commit was
available, but not the file itself. Checksums of files on the Hub are not listed here: the Hub lists
them, and `store.py` keeps the first list it receives with the files.

Corpora that require an account, and those that may not be redistributed, are not included.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from lmsmith.config.registry import Registry
from lmsmith.errors import DataError

FOUNDRY = "8c8dd48f72168c5d51e2f7b151595892a8fba43d"
HELLASWAG = "a29ff8e9a04bba4bd6588223785ce105328adc57"


@dataclass(frozen=True)
class File:
    """A file at a fixed address."""

    url: str
    n_bytes: int
    checksum: str | None
    """None: unknown when this was written; the first download's checksum is kept, and later
    downloads are checked against it.
    """

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def exact(self) -> bool:
        """Whether `n_bytes` is the exact length: true if the file itself was available when this
        was written.
        """
        return self.checksum is not None and self.checksum.startswith("sha256:")


@dataclass(frozen=True)
class HubFiles:
    """Files of a data set on the Hugging Face Hub that match patterns: in the order of the
    patterns, sorted within each.

    `*` matches any part of a path, including slashes. `n_bytes` is the approximate total size.
    """

    repo: str
    patterns: tuple[str, ...]
    n_bytes: int
    revision: str = "main"


@dataclass(frozen=True)
class Corpus:
    name: str
    kind: Literal["text", "shards", "tasks"]
    what: str
    licence: str
    homepage: str
    source: tuple[File, ...] | HubFiles
    note: str = ""
    """A note on anything about the corpus that may surprise a user."""

    @property
    def n_bytes(self) -> int:
        """Bytes to download; approximate unless `exact`."""
        return (
            self.source.n_bytes
            if isinstance(self.source, HubFiles)
            else sum(file.n_bytes for file in self.source)
        )

    @property
    def exact(self) -> bool:
        """Whether `n_bytes` is exact."""
        return not isinstance(self.source, HubFiles) and all(file.exact for file in self.source)

    @property
    def size(self) -> str:
        """`n_bytes` in words: "1.1 MB", "about 28 GB"."""
        return ("" if self.exact else "about ") + format_size(self.n_bytes)

    @property
    def where(self) -> str:
        """The download source, in words."""
        if isinstance(self.source, HubFiles):
            return f"the data set {self.source.repo} of the Hugging Face Hub"
        return self.source[0].url


def find(name: str) -> Corpus | None:
    """Returns the corpus of this name, in any case; None if there is none."""
    name = name.lower()
    return CORPORA.get(name) if name in CORPORA else None


def get(name: str) -> Corpus:
    """Returns the corpus of this name. Raises DataError if there is none."""
    corpus = find(name)
    if corpus is None:
        suggestion = nearest(name)
        hint = f"Did you mean {suggestion}?" if suggestion else ""
        raise DataError(
            f"there is no corpus {name!r}. {hint} `lmsmith data list` lists all corpora.".replace(
                "  ", " "
            )
        )
    return corpus


def nearest(name: str) -> str | None:
    """Returns the corpus with the most similar name; None if no name is similar."""
    matches = difflib.get_close_matches(name.lower(), CORPORA, n=1, cutoff=0.6)
    return CORPORA.get(matches[0]).name if matches else None


def format_size(n_bytes: float) -> str:
    """1_115_394 -> "1.1 MB"; at least two digits."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if n_bytes < 999.5 or unit == "TB":
            break
        n_bytes /= 1000
    return (
        f"{n_bytes:.0f} {unit}" if n_bytes >= 9.95 or unit == "bytes" else f"{n_bytes:.1f} {unit}"
    )


def _foundry(path: str, n_bytes: int, checksum: str) -> tuple[File, ...]:
    """Returns a task set in mosaicml/llm-foundry's format: one JSON object per line."""
    folder_url = (
        f"https://raw.githubusercontent.com/mosaicml/llm-foundry/{FOUNDRY}/scripts/eval/local_data"
    )
    return (File(f"{folder_url}/{path}.jsonl", n_bytes, checksum),)


_TEXT = (
    Corpus(
        "tinyshakespeare",
        "text",
        "plays of Shakespeare in one file, the smallest standard corpus",
        "public domain",
        "https://github.com/karpathy/char-rnn",
        (
            File(
                "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/"
                "tinyshakespeare/input.txt",
                1_115_394,
                "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    Corpus(
        "tinystories",
        "text",
        "2.1 million short stories in a small child's vocabulary, by GPT-3.5 and GPT-4; training "
        "split",
        "CDLA-Sharing-1.0",
        "https://arxiv.org/abs/2305.07759",
        HubFiles(
            "roneneldan/TinyStories",
            ("data/train-*.parquet",),
            990_786_315,
            "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        ),
    ),
    Corpus(
        "tinystories-validation",
        "text",
        "the validation split of TinyStories",
        "CDLA-Sharing-1.0",
        "https://arxiv.org/abs/2305.07759",
        HubFiles(
            "roneneldan/TinyStories",
            ("data/validation-*.parquet",),
            9_989_127,
            "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        ),
    ),
    *(
        Corpus(
            f"wikitext-103{'' if part == 'train' else f'-{part}'}",
            "text",
            f"good and featured articles of the English Wikipedia, raw; {long} split",
            "CC-BY-SA-3.0, GFDL",
            "https://arxiv.org/abs/1609.07843",
            HubFiles(
                "Salesforce/wikitext",
                (f"wikitext-103-raw-v1/{part}-*.parquet",),
                n_bytes,
                "b08601e04326c79dfdd32d625aee71d232d685c3",
            ),
            note="a row is a line, not an article: each line becomes a document",
        )
        for part, long, n_bytes in (
            ("train", "training", 314_000_000),
            ("validation", "validation", 657_000),
            ("test", "test", 733_000),
        )
    ),
    Corpus(
        "openwebtext",
        "text",
        "8 million web pages linked from Reddit, a reproduction of GPT-2's corpus",
        "CC0-1.0",
        "https://skylion007.github.io/OpenWebTextCorpus",
        # The owner's conversion to Parquet: the main branch has archives that only a script can
        # read.
        HubFiles(
            "Skylion007/openwebtext",
            ("data/train-*.parquet",),
            24_000_000_000,
            "7577b918bd30b25df0b88bb718dc8a6c80cb619b",
        ),
        note="the licence covers the collection; the pages belong to their authors",
    ),
    *(
        Corpus(
            name,
            "text",
            what,
            "ODC-By-1.0",
            homepage,
            HubFiles(repo, (pattern,), n_bytes),
            note="Common Crawl's terms of use apply as well",
        )
        for name, what, homepage, repo, pattern, n_bytes in (
            (
                "fineweb-10BT",
                "FineWeb, a sample of 10 billion tokens",
                "https://arxiv.org/abs/2406.17557",
                "HuggingFaceFW/fineweb",
                "sample/10BT/*.parquet",
                30_000_000_000,
            ),
            (
                "fineweb",
                "web pages of Common Crawl, cleaned; 15 trillion tokens",
                "https://arxiv.org/abs/2406.17557",
                "HuggingFaceFW/fineweb",
                "data/*.parquet",
                44_000_000_000_000,
            ),
            (
                "fineweb-edu-10BT",
                "FineWeb-Edu, a sample of 10 billion tokens",
                "https://arxiv.org/abs/2406.17557",
                "HuggingFaceFW/fineweb-edu",
                "sample/10BT/*.parquet",
                28_000_000_000,
            ),
            (
                "fineweb-edu",
                "FineWeb's educational pages; 1.3 trillion tokens",
                "https://arxiv.org/abs/2406.17557",
                "HuggingFaceFW/fineweb-edu",
                "data/*.parquet",
                3_700_000_000_000,  # estimated from the sample's bytes per token
            ),
        )
    ),
)

# The validation shard comes first, so that `--files 2` downloads one validation and one training
# shard.
_SHARDS = tuple(
    Corpus(
        name,
        "shards",
        what,
        "ODC-By-1.0",
        homepage,
        HubFiles(repo, ("*_val_*.bin", "*_train_*.bin"), n_shards * 200_001_024),
        note="shards of 100 million GPT-2 tokens; the validation shard is the first file",
    )
    for name, what, homepage, repo, n_shards in (
        (
            "fineweb10B-gpt2",
            "modded-nanogpt's shards of FineWeb, 10 billion tokens",
            "https://github.com/KellerJordan/modded-nanogpt",
            "kjj0/fineweb10B-gpt2",
            104,
        ),
        (
            "fineweb100B-gpt2",
            "modded-nanogpt's shards of FineWeb, 100 billion tokens",
            "https://github.com/KellerJordan/modded-nanogpt",
            "kjj0/fineweb100B-gpt2",
            1031,
        ),
        (
            "finewebedu10B-gpt2",
            "modded-nanogpt's shards of FineWeb-Edu, 10 billion tokens",
            "https://github.com/KellerJordan/modded-nanogpt",
            "kjj0/finewebedu10B-gpt2",
            100,
        ),
        (
            "finewebedu100B-gpt2",
            "llm.c's shards of FineWeb-Edu, 100 billion tokens",
            "https://github.com/karpathy/llm.c",
            "karpathy/fineweb-edu-100B-gpt2-token-shards",
            1002,
        ),
    )
)

_TASKS = tuple(
    Corpus(name, "tasks", what, licence, homepage, files)
    for name, what, licence, homepage, files in (
        (
            "hellaswag",
            "how does a scene continue? 10,042 items, 4 choices; validation split",
            "MIT",
            "https://arxiv.org/abs/1905.07830",
            (
                File(
                    f"https://raw.githubusercontent.com/rowanz/hellaswag/{HELLASWAG}/data/hellaswag_val.jsonl",
                    12_200_000,
                    "git:0f5ee25d72216f12317d5d8a7b92deafa423d81e",
                ),
            ),
        ),
        (
            "arc-easy",
            "school science questions, easier set; 2,376 items",
            "CC-BY-SA-4.0",
            "https://arxiv.org/abs/1803.05457",
            _foundry(
                "world_knowledge/arc_easy",
                636_665,
                "sha256:d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5",
            ),
        ),
        (
            "arc-challenge",
            "school science questions, harder set; 1,172 items",
            "CC-BY-SA-4.0",
            "https://arxiv.org/abs/1803.05457",
            _foundry(
                "world_knowledge/arc_challenge",
                365_606,
                "sha256:1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636",
            ),
        ),
        (
            "piqa",
            "physical common sense: how is a task done? 1,838 items, 2 choices; validation split",
            "AFL-3.0",
            "https://arxiv.org/abs/1911.11641",
            _foundry(
                "commonsense_reasoning/piqa",
                533_992,
                "sha256:d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
            ),
        ),
        (
            "winogrande",
            "pronoun resolution: whom does it mean? 1,267 items, 2 choices; validation split",
            "Apache-2.0",
            "https://arxiv.org/abs/1907.10641",
            _foundry(
                "language_understanding/winogrande",
                312_369,
                "sha256:ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
            ),
        ),
        (
            "lambada",
            "the last word of a passage; 5,153 items, OpenAI's version",
            "CC-BY-4.0",
            "https://arxiv.org/abs/1606.06031",
            _foundry(
                "language_understanding/lambada_openai",
                1_895_241,
                "sha256:411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
            ),
        ),
        (
            "gsm8k",
            "grade school math word problems; 1,319 items; test split",
            "MIT",
            "https://arxiv.org/abs/2110.14168",
            _foundry(
                "symbolic_problem_solving/gsm8k",
                770_037,
                "sha256:de44d36e1b80fae762efc1e858c875ba83c208de1aba99deda890fff6b5f732d",
            ),
        ),
        (
            "mmlu",
            "exam questions in 57 subjects, 4 choices; test split",
            "MIT",
            "https://arxiv.org/abs/2009.03300",
            _foundry(
                "world_knowledge/mmlu", 7_000_000, "git:4466b2dfb2a13d00a33f4d1b7ffc5d06a4c9b34f"
            ),
        ),
    )
)

CORPORA: Registry[Corpus] = Registry(
    "corpus",
    "lmsmith.corpora",
    {corpus.name.lower(): corpus for corpus in (*_TEXT, *_SHARDS, *_TASKS)},
)
