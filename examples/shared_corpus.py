"""A new corpus: text on a group's shared disk, with a name of its own.

    LMSMITH_EXTENSIONS=examples/shared_corpus.py lmsmith train lab-notes

The first use copies the files to the local store and keeps their checksums. After that the corpus
works without the shared disk. LAB_CORPORA names the folder.
"""

import os
from pathlib import Path

from lmsmith.extend import Corpus, File, register_corpus

FOLDER = Path(os.environ.get("LAB_CORPORA", "/srv/corpora"))


def files(*names: str) -> tuple[File, ...]:
    """Files of the shared folder. Checksums are unknown: that of the first copy is kept and
    compared.
    """
    paths = [FOLDER / name for name in names]
    return tuple(
        File(path.as_uri(), path.stat().st_size if path.exists() else 0, None) for path in paths
    )


register_corpus(
    Corpus(
        name="lab-notes",
        kind="text",
        what="the group's notes, one per line",
        licence="for the group only",
        homepage="https://example.org/lab",
        source=files("notes.jsonl"),
    )
)
