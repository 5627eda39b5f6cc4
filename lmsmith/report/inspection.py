"""Draws what a model has learned: `lmsmith inspect`, and a section of a run's report.

Pictures have one pixel per number (`pictures.py`) and are enlarged by the browser without
smoothing; labels are text. Attention weights are drawn on a scale of square roots, because most are
small: the middle of the colours is 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmsmith import __version__, atomic
from lmsmith.inspect.inspection import Inspection
from lmsmith.inspect.losses import Group
from lmsmith.report.charts import Line, line_chart
from lmsmith.report.page import BEGINNING, page, text
from lmsmith.report.pictures import colour, colour_bar, heat_map, ink_on

MOST_HEADS = 192  # thumbnails; of larger models some layers are left out
_CELL = 18  # units per token of the enlarged head

STYLE = """
.heads { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.heads figure { margin: 0; } .heads figcaption { color: var(--soft); font-size: 12px; }
.heads img, .square img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated;
  background: var(--mark); border-radius: 3px; }
.heads .chosen img { outline: 3px solid var(--c1); }
.panel { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 14px 16px; margin-top: 14px; }
.panel svg { display: block; } .panel.scroll { overflow-x: auto; }
.panel text { fill: var(--ink);
  font: 11px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.square { max-width: 420px; }
.colours { display: inline-flex; align-items: center; gap: 8px; font-size: 13px; }
.colours i { font-style: normal; color: var(--soft); }
.chart .bits th { white-space: nowrap; font-size: 14px; }
.colours img { width: 120px; height: 11px; border-radius: 3px; }
.lens table { font-size: 13px; width: auto; } .lens td, .lens th { padding: 0; border: 0; }
.lens td span, .lens tbody th { display: block; padding: 3px 8px; min-width: 4.5em;
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-align: left; }
.lens thead th { padding: 6px 8px; text-align: left; }
.lens td.right span { text-decoration: underline; font-weight: 700; }
.lens tbody th { display: table-cell; background: var(--card); position: sticky; left: 0; }
.near td, .near th { text-align: left; } .near td { white-space: normal; }
.near code { margin-right: 3px; white-space: nowrap; }
.near small { color: var(--soft); margin-right: 10px; }
.bits td.count { color: var(--soft); font-size: 13px; }
"""


def write_inspection(inspection: Inspection, out: Path) -> Path:
    """Writes the page to the file `out`, and returns `out`. Raises StorageError."""
    atomic.check_replaceable(out, BEGINNING)
    header = (
        f'<header><div class="brand">lmsmith inspect</div><h1>{text(inspection.name)}</h1>'
        f"<p>What this model has learned: {text(inspection.what)}.</p></header>"
    )
    footer = f"<footer>Written by lmsmith {__version__}.</footer>"
    body = "\n".join([header, *inspection_sections(inspection), footer])
    title = f"{inspection.name} — lmsmith inspect"
    atomic.write(out, page(title, body, style=STYLE, pictures=True))
    return out


def inspection_sections(inspection: Inspection) -> list[str]:
    """The sections of a page; it needs `STYLE` and pictures. Parts that do not apply are absent."""
    notes = "".join(f"<li>{text(_sentence(note))}</li>" for note in inspection.notes)
    return [
        f'<div class="notice"><ul>{notes}</ul></div>' if notes else "",
        _losses(inspection),
        _lens(inspection),
        _attention(inspection),
        _sizes(inspection),
        _positions(inspection),
        _neighbours(inspection),
    ]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _losses(inspection: Inspection) -> str:
    if inspection.loss is None:
        return ""
    where, often = inspection.loss_by_position, inspection.loss_by_frequency
    return (
        "<h2>Loss by position and by frequency</h2>"
        f'<p class="about">Nats per token, on {inspection.n_tokens:,} tokens of text; over all of '
        f"them it is {inspection.loss:.3f}. By position: the number of tokens before the predicted "
        "one; a model that uses its context has a loss that falls with it. By frequency: how often "
        "the predicted token occurs in training; rare tokens cost more, and their share of the "
        'text says how much that matters.</p><div class="charts">'
        f"{_bars('Tokens of context', where)}{_bars('Occurrences in training', often)}</div>"
    )


def _bars(title: str, groups: Sequence[Group]) -> str:
    """A bar for the loss of each group, with the group's share of the tokens."""
    highest = max((group.nats for group in groups if math.isfinite(group.nats)), default=1.0)
    n_tokens = sum(group.n for group in groups)
    rows = ""
    for group in groups:
        name = f"{group.low:,}" + (f" to {group.high:,}" if group.high > group.low else "")
        width = 100 * min(1.0, group.nats / highest)
        rows += (
            f'<tr><th scope="row">{name}</th><td class="bars"><span class="bar" '
            f'style="width:{width:.1f}%;background:var(--c0)"></span></td>'
            f'<td>{group.nats:.3f}</td><td class="count">{group.n / n_tokens:.1%} of tokens</td>'
            "</tr>"
        )
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<table class="bits"><tbody>{rows}</tbody></table></figure>'
    )


def _lens(inspection: Inspection) -> str:
    lens, ids = inspection.trace.lens, inspection.ids
    head = "".join(f'<th scope="col">{depth}</th>' for depth in ["after", *lens.depths, "next is"])
    rows = ""
    for at, token in enumerate(inspection.tokens):
        following = inspection.tokens[at + 1] if at + 1 < len(ids) else ""
        rows += f'<tr><th scope="row">{text(token)}</th>'
        for depth in range(len(lens.depths)):
            one, p = int(lens.ids[depth, at]), float(lens.probabilities[depth, at])
            right = at + 1 < len(ids) and one == ids[at + 1]
            red, green, blue = colour(p)
            rows += (
                f'<td{" class=right" if right else ""} title="probability {p:.3f}"><span '
                f'style="background:rgb({red},{green},{blue});color:{ink_on(p)}">'
                f"{text(inspection.texts[one])}</span></td>"
            )
        rows += f"<td><span>{text(following)}</span></td></tr>"
    several = len(lens.depths) > 1
    title = "Logit lens" if several else "Predictions"
    about = (
        "The most likely next token if the layers above a depth were left out: the residual stream "
        "at that depth, through the final norm and the head. The last layer is what the model "
        "predicts."
        if several
        else "The most likely next token after each token of the prompt."
    )
    return (
        f'<h2>{title}</h2><p class="about">{about} The colour is the probability '
        f"{colour_bar('0', '1')}; a prediction that comes true is underlined.</p>"
        f'<div class="panel scroll lens"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _attention(inspection: Inspection) -> str:
    weights = inspection.trace.attention
    if weights is None:
        return ""
    n_layer, n_head, n, _ = weights.shape
    layers = np.unique(np.linspace(0, n_layer - 1, max(1, MOST_HEADS // n_head)).astype(int))
    layers = np.arange(n_layer) if n_layer * n_head <= MOST_HEADS else layers
    hidden = np.triu(np.ones((n, n), bool), 1)
    pictures = np.where(hidden, np.nan, np.sqrt(weights))
    chosen = _sharpest(weights[layers])
    chosen = int(layers[chosen[0]]), chosen[1]
    figures = ""
    for layer in layers.tolist():
        for head in range(n_head):
            name = f"layer {layer + 1}, head {head + 1}"
            figures += (
                f"<figure{' class=chosen' if (layer, head) == chosen else ''}>"
                f'<img src="{heat_map(pictures[layer, head])}" alt="attention of {name}">'
                f"<figcaption>{name}</figcaption></figure>"
            )
    some = "" if len(layers) == n_layer else f" {len(layers)} of {n_layer} layers are shown."
    return (
        '<h2>Attention</h2><p class="about">Each row is a token of the prompt, each column a token '
        "that it looks at; a row adds up to 1. Weights "
        f"{colour_bar('0', '1')} are drawn by their square roots: the middle colour is 0.25."
        f"{some}</p>"
        f'<div class="heads">{figures}</div>'
        f"<p>Layer {chosen[0] + 1}, head {chosen[1] + 1}, enlarged: the head whose attention is "
        "most concentrated on tokens other than the first and the current one.</p>"
        f"{_enlarged(pictures[chosen], inspection.tokens)}"
    )


def _sharpest(weights: npt.NDArray[np.float32]) -> tuple[int, int]:
    """The head (layer, head) with the highest largest weight, averaged over queries, on keys other
    than the first and the query's own.
    """
    others = weights * (1 - np.eye(weights.shape[-1], dtype=weights.dtype))
    others[..., 0] = 0
    peaks = others.max(axis=-1).mean(axis=-1)
    layer, head = np.unravel_index(int(peaks.argmax()), peaks.shape)
    return int(layer), int(head)


def _enlarged(picture: npt.NDArray[np.floating], tokens: Sequence[str]) -> str:
    """One head with its tokens as labels, queries at the left, keys at the top."""
    n = len(tokens)
    short = [token if len(token) <= 10 else f"{token[:9]}…" for token in tokens]
    margin = 12 + 7 * max(map(len, short))
    size = margin + n * _CELL
    labels = ""
    for at, token in enumerate(short):
        middle = margin + at * _CELL + _CELL / 2
        labels += (
            f'<text x="{margin - 6}" y="{middle + 4}" text-anchor="end">{text(token)}</text>'
            f'<text transform="translate({middle + 4} {margin - 6}) rotate(-90)">'
            f"{text(token)}</text>"
        )
    return (
        f'<div class="panel scroll"><svg width="{size}" height="{size}" '
        f'viewBox="0 0 {size} {size}" role="img" aria-label="attention weights">{labels}'
        f'<image href="{heat_map(picture)}" x="{margin}" y="{margin}" width="{n * _CELL}" '
        f'height="{n * _CELL}" preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        "</svg></div>"
    )


def _sizes(inspection: Inspection) -> str:
    charts = [
        _by_layer("Activations", inspection.trace.activations),
        _by_layer("Weights", inspection.weight_sizes),
    ]
    if not any(charts):
        return ""
    changes = " A layer whose output is small next to the residual stream changes little."
    changes = "" if inspection.trace.attention is None else changes
    return (
        '<h2>Size of activations and weights by layer</h2><p class="about">Root mean squares: of '
        "the numbers of an activation vector, averaged over the prompt; and of the entries of each "
        f"matrix.{changes}</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _by_layer(title: str, sizes: Mapping[str, npt.NDArray[np.float32]]) -> str:
    if not sizes:
        return ""
    lines = [
        Line(np.arange(1, len(values) + 1.0), values.astype(np.float64), i, dots=True, label=name)
        for i, (name, values) in enumerate(sizes.items())
    ]
    high = max(float(np.nanmax(line.y)) for line in lines)
    return line_chart(
        title,
        lines,
        x_label="layer",
        y_range=(0.0, 1.08 * high or 1.0),
        n_ticks=max(2, min(5, len(lines[0].x))),
        named=True,
    )


def _positions(inspection: Inspection) -> str:
    if inspection.positions is None:
        return ""
    positions, cosines = inspection.positions
    last = int(positions[-1])
    return (
        '<h2>Position embeddings</h2><p class="about">Similarity (cosine) of the embeddings of '
        f"positions 0 to {last:,}, from left to right and from top to bottom: "
        f"{colour_bar('-1', '1')}. A bright diagonal that fades means that the model knows "
        "which positions are near each other; noise, that it has not learned them.</p>"
        '<div class="panel square">'
        f'<img src="{heat_map(cosines, -1, 1)}" alt="similarity of position embeddings"></div>'
    )


def _neighbours(inspection: Inspection) -> str:
    if not inspection.neighbours:
        return ""
    rows = ""
    for row in inspection.neighbours:
        near = "".join(
            f"<code>{text(inspection.texts[one])}</code><small>{cosine:.2f}</small>"
            for one, cosine in row.nearest
        )
        token = text(inspection.texts[row.id])
        rows += f'<tr><th scope="row"><code>{token}</code></th><td>{near}</td></tr>'
    return (
        '<h2>Nearest tokens</h2><p class="about">Tokens with the most similar embeddings (cosine), '
        "for tokens of the prompt. Training moves tokens with similar uses together.</p>"
        f'<div class="scroll near"><table><tbody>{rows}</tbody></table></div>'
    )
