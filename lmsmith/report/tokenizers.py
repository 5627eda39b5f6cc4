"""Tokenizers compared on one text, as a page: a table, the curve of bytes per token, a sentence
cut by each.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lmsmith.report.charts import Line, legend, line_chart
from lmsmith.report.page import page, table, text
from lmsmith.tokens.measure import Measure, shown
from lmsmith.tokens.tokenizer import Tokenizer

HEAD = ("tokenizer", "vocabulary", "tokens", "bytes/token", "used", "unknown", "MB/s")

SPACE = "\u00b7"  # a dot where a token has a space


def comparison_rows(rows: Sequence[Measure]) -> list[list[str]]:
    """The table's cells, for a page or a terminal, under `HEAD`."""
    return [
        [
            row.name,
            f"{row.vocab_size:,}",
            f"{row.n_tokens:,}",
            f"{row.bytes_per_token:.2f}",
            f"{row.share_used:.0%}",
            f"{row.n_unknown:,}" if row.n_unknown else "none",
            f"{row.megabytes_per_second:,.1f}",
        ]
        for row in rows
    ]


def comparison_page(
    rows: Sequence[Measure],
    tokenizers: Mapping[str, Tokenizer],
    held_out: str,
    *,
    name: str,
    n_learnt: int,
) -> str:
    """One HTML file. A sentence of `held_out`, the text compared on, is shown as each tokenizer
    cuts it.

    `name`: of the text. `n_learnt`: how many of its characters were learnt from.
    """
    sentence = sentence_of(held_out)
    cut = ""
    for row in rows:
        parts = [text(part.replace(" ", SPACE)) for part in shown(tokenizers[row.name], sentence)]
        cut += (
            f"<h3>{text(row.name)}</h3><p>{' '.join(f'<code>{part}</code>' for part in parts)}</p>"
        )
    cells = [[text(cell) for cell in row] for row in comparison_rows(rows)]
    body = (
        f'<header><div class="brand">lmsmith tokenizers compared</div><h1>{text(name)}</h1>'
        f"<p>Learnt from {n_learnt:,} characters of it, compared on the other {len(held_out):,} "
        f"({rows[0].n_bytes:,} bytes).</p></header>"
        f"<h2>In numbers</h2>{table(HEAD, cells)}{_curve(rows)}<h2>One sentence</h2>{cut}"
    )
    return page(f"{name} — lmsmith tokenizers compared", body)


def sentence_of(held_out: str, most: int = 120) -> str:
    """A line of the text, cut between words. Not its first one, which may begin in the middle of
    a word.
    """
    lines = held_out.splitlines()
    line = next((line for line in [*lines[1:], *lines[:1]] if len(line) > 30), held_out)
    return line if len(line) <= most else line[:most].rpartition(" ")[0] or line[:most]


def _curve(rows: Sequence[Measure]) -> str:
    """Bytes per token over the size of the vocabulary: a line through those that were learnt
    here, a dot for others.
    """
    groups: dict[str, list[Measure]] = {}
    for row in rows:
        groups.setdefault(
            "BPE, learnt here" if row.name.startswith("BPE ") else row.name, []
        ).append(row)
    lines = []
    for colour, (name, some) in enumerate(groups.items()):
        x, y = (
            np.array([getattr(row, key) for row in some], float)
            for key in ("vocab_size", "bytes_per_token")
        )
        lines.append(Line(x, y, colour, dots=True, label=name))
    top = 1.1 * max(row.bytes_per_token for row in rows) or 1.0
    title = "Bytes per token by the size of the vocabulary"
    chart = line_chart(
        title, lines, x_label="entries of the vocabulary", y_range=(0.0, top), log2_x=True
    )
    return f"<h2>Bytes per token</h2>{legend(lines)}{chart}"
