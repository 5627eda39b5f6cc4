"""An HTML page that compares tokenizers on one text: a table, a chart of bytes per token, and a
sentence split into tokens by each.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lmsmith.report.charts import Line, legend, line_chart
from lmsmith.report.page import page, table, text
from lmsmith.tokens.measure import Measure, shown
from lmsmith.tokens.tokenizer import Tokenizer

HEAD = ("tokenizer", "vocabulary", "tokens", "bytes/token", "used", "unknown", "MB/s")

SPACE = "\u00b7"  # shown for a space in a token


def comparison_rows(rows: Sequence[Measure]) -> list[list[str]]:
    """Returns the table's cells, for a page or a terminal, under `HEAD`."""
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
    n_trained_on: int,
) -> str:
    """Returns the HTML page.

    `held_out`: the text that the tokenizers were compared on; a sentence of it is shown as tokens.
    `name`: the name of the text. `n_trained_on`: number of its characters used for training.
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
        f"<p>Tokenizers trained on {n_trained_on:,} characters of this text and compared on the "
        f"other "
        f"{len(held_out):,} ({rows[0].n_bytes:,} bytes).</p></header>"
        f"<h2>In numbers</h2>{table(HEAD, cells)}{_curve(rows)}<h2>One sentence</h2>{cut}"
    )
    return page(f"{name} — lmsmith tokenizers compared", body)


def sentence_of(held_out: str, most: int = 120) -> str:
    """Returns a line of the text, truncated between words. Prefers lines after the first, which may
    begin in the middle of a word.
    """
    lines = held_out.splitlines()
    line = next((line for line in [*lines[1:], *lines[:1]] if len(line) > 30), held_out)
    return line if len(line) <= most else line[:most].rpartition(" ")[0] or line[:most]


def _curve(rows: Sequence[Measure]) -> str:
    """Returns a chart of bytes per token by vocabulary size: a line for the BPE tokenizers trained
    here, a dot for each other one.
    """
    groups: dict[str, list[Measure]] = {}
    for row in rows:
        groups.setdefault(
            "BPE, trained on this text" if row.name.startswith("BPE ") else row.name, []
        ).append(row)
    lines = []
    for colour, (name, some) in enumerate(groups.items()):
        x, y = (
            np.array([getattr(row, key) for row in some], float)
            for key in ("vocab_size", "bytes_per_token")
        )
        lines.append(Line(x, y, colour, dots=True, label=name))
    top = 1.1 * max(row.bytes_per_token for row in rows) or 1.0
    title = "Bytes per token by vocabulary size"
    chart = line_chart(title, lines, x_label="vocabulary size", y_range=(0.0, top), log2_x=True)
    return f"<h2>Bytes per token</h2>{legend(lines)}{chart}"
