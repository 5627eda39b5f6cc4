"""The project speaks the field's language: standard terms where a newcomer looks for them, and none
of the phrases that have a plainer or a standard equivalent.

Both lists are strict. A term must appear in each place that its row names; a banned phrase must not
appear in any string, docstring or comment of `lmsmith/`, nor in the README or the documentation.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsmith.cli import verbs
from lmsmith.config import MODEL_KINDS, settings

PROJECT = Path(__file__).resolve().parent.parent
HISTORY = PROJECT / "docs" / "log.md"  # records what was measured, in the words of its day
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    *sorted(path for path in (PROJECT / "docs").rglob("*.md") if path != HISTORY),
]
STORIES = {"story_plots.py", "story_scenes.py", "story_words.py"}  # text of stories, not ours
SOURCES = sorted(path for path in (PROJECT / "lmsmith").rglob("*.py") if path.name not in STORIES)

# Term (a regular expression), and the places that must have it: "help", of all commands; "settings",
# their names and descriptions; "README"; "docs", the other pages.
TERMS = [
    ("gradient accumulation", "settings"),
    ("micro-batch", "docs"),
    ("activation checkpointing|gradient checkpointing", "settings"),
    ("weight tying|tied embeddings", "settings"),
    ("KV cache", "help"),
    ("KV cache", "docs"),
    ("data loader", "docs"),
    ("fine-tun(e|ing)", "help"),
    ("fine-tun(e|ing)", "settings"),
    ("fine-tun(e|ing)", "README"),
    ("mixed precision", "settings"),
    ("torch.compile", "settings"),
    ("warm-up", "settings"),
    ("learning rate", "settings"),
    ("learning rate schedule", "help"),
    ("early stopping", "settings"),
    ("validation loss", "README"),
    ("validation loss", "settings"),
    ("validation split|validation set|validation text", "settings"),
    ("held[- ]out", "help"),
    ("held[- ]out", "README"),
    ("perplexity", "help"),
    ("perplexity", "README"),
    ("bits per byte", "help"),
    ("bits per byte", "README"),
    ("deduplication", "help"),
    ("packed|packing", "settings"),
    ("optimizer steps?", "settings"),
    ("epochs?|passes over", "settings"),
    ("grouped-query attention|GQA", "settings"),
    ("rotary", "settings"),
    ("RoPE", "settings"),
    ("SwiGLU", "settings"),
    ("RMSNorm", "settings"),
    ("sliding[- ]window", "settings"),
    ("residual stream", "settings"),
    ("logits", "settings"),
    ("dropout", "settings"),
    ("AdamW", "settings"),
    ("Muon", "settings"),
    ("gradient clipping|clip the global gradient norm", "settings"),
    ("gradient clipping", "docs"),
    ("weight decay", "settings"),
    ("truncated BPTT", "settings|docs"),
    ("FSDP", "settings"),
    ("DDP", "settings"),
    ("FSDP", "docs"),
    ("torchrun", "README"),
    ("ranks?", "settings"),
    ("all-reduce", "docs"),
    ("broadcast", "docs"),
    ("resume", "help"),
    ("resume", "README"),
    ("checkpoints?", "help"),
    ("checkpoints?", "README"),
    ("spikes?", "settings"),
    ("shards?", "help"),
    ("shards?", "docs"),
    ("tokenize", "help"),
    ("pre-tokenization", "help"),
    ("byte-pair encoding", "help"),
    ("merges", "help"),
    ("vocabulary", "help"),
    ("special tokens", "help"),
    ("temperature", "help"),
    ("top-k", "help"),
    ("top-p", "help"),
    ("nucleus", "help"),
    ("greedy", "help"),
    ("stop sequence", "help"),
    ("seed", "help"),
    ("MFU", "README|docs"),
]

# Phrase (a regular expression), and the plain words for it.
BANNED = {
    r"to be had": "available",
    r"(go|goes|going|went) on": "continue, resume",
    r"whoever": "if you ...",
    r"league": "comparison",
    r"flight": "a request, a batch, in progress",
    r"(made|makes|make|making) (it |them )?again": "recompute, rebuild",
    r"by heart": "memorized",
    r"s of updates": "s of training",
    r"an update": "a step",
    r"each update": "each step",
    r"(one|every|the first|the last|the next) update": "step",
    r"updates (in all|measured|made|a second)": "steps",
    r"optimisers?": "optimizer",
    r"tokenisers?": "tokenizer",
    r"anew": "again, new",
    r"alike": "identical, the same",
    r"and the like": "and similar",
    r"be it": "if",
    r"for ever": "indefinitely",
    r"that many": "this number of",
    r"lays? windows": "slides windows",
    r"carried on": "kept across steps",
    r"held (to|against)": "limited to, compared with, checked against",
    r"comes? to the same": "equal",
    r"let be": "left unchanged",
    r"leaps?": "spike",
    r"out of the ordinary": "unusual",
    r"the text there is": "the available text",
    r"what there is": "name the thing",
    r"(is|are|be) whole(?! numbers?)": "complete",
    r"no whole(?! numbers?)": "not a complete",
    r"whole and checked": "complete and verified",
    r"wants": "needs, expects",
    r"accounting(?!\.md)": "count, cost",
    r"stands? behind": "comes after",
    r"goes? behind": "comes after",
    r"told of": "reported",
    r"key-value cache": "KV cache",
}
# What other programs call something, and names that lmsmith reads: file -> phrases.
QUOTED = {"lmsmith/config/synonyms.py": {r"optimisers?", r"tokenisers?", r"league"}}


@functools.cache
def place(name: str) -> str:
    if name == "help":
        text = "\n".join(parser.format_help() for parser in (verbs().top, *verbs().found.values()))
        text = re.sub(r"-\n\s*", "-", text)  # argparse breaks lines after hyphens
    elif name == "settings":
        kinds = [MODEL_KINDS.get(kind) for kind in MODEL_KINDS.names()]
        known = {leaf for kind in kinds for _, leaf in settings(kind)}
        text = "\n".join(f"{leaf.name.replace('_', ' ')}: {leaf.meaning}" for leaf in known)
    elif name == "README":
        text = PAGES[0].read_text(encoding="utf-8")
    else:
        text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES[1:])
    return " ".join(text.split())


def has(text: str, phrase: str) -> re.Match[str] | None:
    return re.search(rf"(?<![\w-])(?:{phrase})(?![\w-])", text, re.IGNORECASE)


@pytest.mark.parametrize(("term", "where"), TERMS, ids=lambda value: value)
def test_a_standard_term_is_where_a_newcomer_looks(term: str, where: str) -> None:
    assert any(has(place(name), term) for name in where.split("|")), (
        f"{term!r} is not in {where.replace('|', ' or ')}"
    )


def passages(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each string and each block of comments, as one line of text.

    Strings that Python joins are one passage, so that a phrase cannot hide at a line's end.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())
        elif isinstance(node, ast.JoinedStr):
            parts = (
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
            yield node.lineno, " ".join("".join(parts).split())
    first, block = 0, [""]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            first, block = first or token.start[0], [*block, token.string.lstrip("# ")]
        elif token.type != tokenize.NL and block != [""]:
            yield first, " ".join(block).strip()
            first, block = 0, [""]


def offences(path: Path, text: list[tuple[int, str]]) -> Iterator[str]:
    name = path.relative_to(PROJECT).as_posix()
    seen = set()
    for line, passage in text:
        if not has(passage, "|".join(BANNED)):
            continue  # one search instead of one per phrase
        for phrase, instead in BANNED.items():
            if phrase not in QUOTED.get(name, ()) and (match := has(passage, phrase)):
                near = passage[max(0, match.start() - 30) : match.end() + 30]
                if near not in seen:
                    seen.add(near)
                    yield f"{name}:{line}: ... {near} ...  (instead: {instead})"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_banned_phrase_in_the_source(path: Path) -> None:
    found = list(offences(path, list(passages(path.read_text(encoding="utf-8")))))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_banned_phrase_on_a_page(path: Path) -> None:
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    lines = [1 + sum(p.count("\n") + 2 for p in paragraphs[:i]) for i in range(len(paragraphs))]
    text = [(line, " ".join(p.split())) for line, p in zip(lines, paragraphs, strict=True)]
    found = list(offences(path, text))
    assert not found, "\n".join(found)


def test_a_phrase_is_found_in_strings_docstrings_and_comments() -> None:
    source = '''"""A module that goes
on."""
# one that goes
# on
x = f"it {1} goes " "on"
y = "cargoes on"
continues = 1
'''
    found = [line for line, text in passages(source) if has(text, "goes on")]
    assert sorted(set(found)) == [1, 3, 5]
