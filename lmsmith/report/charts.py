"""Line charts as fragments of HTML: SVG draws the curves, HTML the text and numbers around them.

Why not matplotlib: these charts follow the reader's light or dark mode, stay readable on a phone
(only the curves are stretched with the page, not the text), and take hundredths of a second, where
importing matplotlib alone takes more than half a second.

The curves have coordinates from 0 to 1000, y downwards, and are stretched to the available space.
`non-scaling-stroke` keeps the line width constant; a dot is a line of zero length with a round end.
The colours are `--c0` to `--c7` of the style sheet; with more than eight curves they repeat with
dashes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
import numpy.typing as npt

from lmsmith.report.page import short

Numbers = npt.NDArray[np.float64]

N_COLOURS = 8
MOST_POINTS = 600
MOST_POWERS = 7  # approximate number of ticks on a logarithmic axis: more would overlap on a phone


@dataclass(frozen=True)
class Line:
    """One curve. `kind`: "strong" (the main curve), "soft" (thinner), or "faint" (the raw values
    behind a smoothed curve). `band`: lower and upper ends of an area around it.
    """

    x: Numbers
    y: Numbers
    colour: int
    kind: str = "strong"
    dots: bool = False
    label: str = ""
    band: tuple[Numbers, Numbers] | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_range: tuple[float, float],
    n_ticks: int = 5,
    log2_x: bool = False,
    named: bool = False,
) -> str:
    """Returns a figure with axes and grid. Values above `y_range` are cut off. Dots show their
    values in a tooltip.

    The x-axis begins at zero. With `log2_x` it is logarithmic with powers of two as ticks, and
    nothing is cut off. `named`: with a legend below.
    """
    low, high = y_range
    y_ticks = ticks(low, high, n_ticks)
    if log2_x:
        lines = [replace(line, x=np.log2(line.x)) for line in lines]
    ends = [float(line.x[np.isfinite(line.x)].max()) for line in lines if np.isfinite(line.x).any()]
    if log2_x:
        first, last = (
            math.floor(min((float(np.nanmin(line.x)) for line in lines), default=0)),
            math.ceil(max(ends)),
        )
        every = max(1, -(-(last - first) // MOST_POWERS))
        plane = _Plane(max(last, first + 1), low, high, left=first)
        x_ticks = [float(power) for power in range(first, last + 1, every)]
        x_texts = [f"{2**power:,.0f}" for power in x_ticks]
    else:
        plane = _Plane(1.015 * max([*ends, 0.0]) or 1.0, low, high)  # room for the last dot
        x_ticks = ticks(0, plane.right, n_ticks)
        x_texts = [tick_text(x, x_ticks) for x in x_ticks]
    grid = "".join(f"M0 {plane.down(y):.1f}H1000" for y in y_ticks)
    drawn = "".join(
        _draw(line, plane, x_label, log2_x) for line in sorted(lines, key=_behind_first)
    )
    x_labels = "".join(
        f'<i style="left:{plane.across(x) / 10:.2f}%">{words}</i>'
        for x, words in zip(x_ticks, x_texts, strict=True)
    )
    y_labels = "".join(
        f'<i style="top:{plane.down(y) / 10:.2f}%">{tick_text(y, y_ticks)}</i>' for y in y_ticks
    )
    return (
        f'<figure class="chart{" log2" if log2_x else ""}"><figcaption>{escape(title)}</figcaption>'
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><path class="grid" d="{grid}"/>{drawn}</svg>'
        f'<div class="y">{y_labels}</div><div class="x">{x_labels}</div></div>'
        f'<div class="x-label">{escape(x_label)}</div>{legend(lines) if named else ""}</figure>'
    )


def legend(lines: Sequence[Line]) -> str:
    """Returns the legend: lines with a label, each with a sample of the line."""
    items = "".join(
        f'<li><svg viewBox="0 0 22 10"><path class="{line.kind}" {_stroke(line.colour)} d="M1 '
        f'5H21"/></svg>'
        f"{escape(line.label)}</li>"
        for line in lines
        if line.label
    )
    return f'<ul class="legend">{items}</ul>'


def thin(values: Numbers, n: int = MOST_POINTS) -> Numbers:
    """Downsamples to at most n values by averaging neighbours."""
    return (
        values
        if len(values) <= n
        else np.array([part.mean() for part in np.array_split(values, n)])
    )


def smooth(y: Numbers, width: float) -> Numbers:
    """Smooths by a Gaussian with a standard deviation of `width` points. Centred, so without lag;
    NaNs stay NaN.
    """
    if not len(y):
        return y
    reach = int(min(4 * width, len(y))) + 1
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-9)) ** 2)
    there = np.isfinite(y)
    total = np.convolve(np.where(there, y, 0.0), weights)[reach : reach + len(y)]
    share = np.convolve(there.astype(float), weights)[reach : reach + len(y)]
    return np.where(there, total / np.where(there, share, 1.0), math.nan)


def ticks(low: float, high: float, n: int) -> list[float]:
    """About n round numbers between low and high, 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / n
    power = 10 ** math.floor(math.log10(rough))
    step = min(
        (power * m for m in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / rough))
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(value: float, all_ticks: Sequence[float]) -> str:
    """Returns a tick's label, with just enough digits: 1.25, 0.0005, 20k."""
    if value == 0:
        return "0"
    step = abs(all_ticks[1] - all_ticks[0]) if len(all_ticks) > 1 else abs(value) or 1.0
    if step >= 1000:
        return short(value)
    if step < 1e-3:
        return f"{value:.2g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits + (round(step * 10**digits, 6) % 1 != 0)}f}"


@dataclass(frozen=True)
class _Plane:
    """Maps data coordinates to the chart's 0 to 1000."""

    right: float
    low: float
    high: float
    left: float = 0.0

    def across(self, x: float) -> float:
        return 1000 * (x - self.left) / (self.right - self.left)

    def down(self, y: float) -> float:
        return 1000 * (self.high - y) / ((self.high - self.low) or 1.0)


def _draw(line: Line, plane: _Plane, x_label: str, log2_x: bool) -> str:
    x, y = line.x, line.y
    path, pen_down = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            # Some browsers overflow on coordinates far outside the chart.
            path.append(
                f"{'L' if pen_down else 'M'}{plane.across(a):.1f} "
                f"{min(max(plane.down(b), -9e3), 9e3):.1f}"
            )
        pen_down = math.isfinite(a) and math.isfinite(b)
    drawn = _band(line, plane)
    drawn += f'<path class="{line.kind}" {_stroke(line.colour)} d="{"".join(path)}"/>'
    if line.dots:
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            if math.isfinite(a) and plane.low <= b <= plane.high:
                where = f"{2**a:,.0f}" if log2_x else f"{a:,.4g}"
                tip = escape(f"{line.label} {b:.4f} at {where} {x_label}")
                point = f"M{plane.across(a):.1f} {plane.down(b):.1f}h0"
                drawn += (
                    f'<path class="dot" style="stroke:var(--c{line.colour % N_COLOURS})" '
                    f'd="{point}">'
                )
                drawn += f"<title>{tip}</title></path>"
    return drawn


def _band(line: Line, plane: _Plane) -> str:
    """The area between the ends of `line.band`; "" without one."""
    if line.band is None or len(line.x) < 2:
        return ""
    low, high = line.band
    there = np.isfinite(line.x) & np.isfinite(low) & np.isfinite(high)
    points = [
        f"{plane.across(a):.1f} {min(max(plane.down(b), -9e3), 9e3):.1f}"
        for x, y in ((line.x[there], high[there]), (line.x[there][::-1], low[there][::-1]))
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    if not points:
        return ""
    colour = f"var(--c{line.colour % N_COLOURS})"
    return f'<path style="fill:{colour};fill-opacity:.16" d="M{"L".join(points)}Z"/>'


def _stroke(colour: int) -> str:
    dashes = ("", "6 3", "2 3")[colour // N_COLOURS % 3]
    return f'style="stroke:var(--c{colour % N_COLOURS})"' + (
        f' stroke-dasharray="{dashes}"' if dashes else ""
    )


def _behind_first(line: Line) -> int:
    return ("faint", "soft", "strong").index(line.kind)
