"""Tokenizers compared on one text, as a page: a table, the curve of bytes per token, a sentence cut by each."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmsmith.studies.charts import Line, legend, line_chart
from lmsmith.studies.page import page, table, text
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
            f"{row.megabytes_per_second:.1f}",
        ]
        for row in rows
    ]


def comparison_page(
    rows: Sequence[Measure], tokenizers: Mapping[str, Tokenizer], sentence: str
) -> str:
    """One HTML file. `sentence` is shown as each tokenizer cuts it."""
    cut = ""
    for row in rows:
        parts = [text(part.replace(" ", SPACE)) for part in shown(tokenizers[row.name], sentence)]
        cut += (
            f"<h3>{text(row.name)}</h3><p>{' '.join(f'<code>{part}</code>' for part in parts)}</p>"
        )
    body = (
        f"<h2>On {rows[0].n_bytes:,} bytes of text that none has learnt from</h2>{table(HEAD, comparison_rows(rows))}"
        f"{_curve(rows)}<h2>One sentence</h2>{cut}"
    )
    return page("Tokenizers compared", body)


def _curve(rows: Sequence[Measure]) -> str:
    """Bytes per token over the size of the vocabulary: a line through those that were learnt here, a dot for others."""
    groups: dict[str, list[Measure]] = {}
    for row in rows:
        groups.setdefault(
            "BPE, learnt here" if row.name.startswith("BPE ") else row.name, []
        ).append(row)
    lines = []
    for colour, (name, some) in enumerate(groups.items()):
        x, y = (
            np.log2([row.vocab_size for row in some]),
            np.array([row.bytes_per_token for row in some]),
        )
        lines.append(Line(x, y, colour, dots=True, label=name))
    top = 1.1 * max(row.bytes_per_token for row in rows) or 1.0
    chart = line_chart(
        "Bytes per token", lines, x_label="vocabulary, as a power of two", y_range=(0.0, top)
    )
    return chart + legend(lines)
