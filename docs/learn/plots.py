"""Draws the plots of these pages as SVG text: curves, bars, and a shaded table."""

from collections.abc import Mapping, Sequence
from html import escape

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1a1a1a}.t{fill:#555}.l{font-weight:600}"
    ".w{fill:#fff}.grid{stroke:#e3e3df;fill:none}.axis{stroke:#8a8a86;fill:none}"
)
COLOURS = ("#1f4e9c", "#b0471e", "#3b7d3a", "#7a4b9e", "#666666")


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    dashed: Sequence[str] = (),
    dots: bool = False,
) -> str:
    """Draws named curves, each (xs, ys), between the first and last ticks, with names at their right ends."""
    left, top, across, down, right = 62, 34, 440, 260, 230

    def at(a: float, b: float) -> tuple[float, float]:
        return (
            left + across * (a - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]),
            top + down * (y_ticks[-1] - b) / (y_ticks[-1] - y_ticks[0]),
        )

    parts = []
    for tick in y_ticks:
        height = at(x_ticks[0], tick)[1]
        parts.append(f'<path class="grid" d="M{left} {height:.1f}h{across}"/>')
        parts.append(_text(left - 8, height + 4, f"{tick:g}", "t", "end"))
    parts += [
        _text(at(tick, y_ticks[0])[0], top + down + 19, f"{tick:g}", "t", "middle")
        for tick in x_ticks
    ]
    parts.append(f'<path class="axis" d="M{left} {top}v{down}h{across}"/>')
    parts.append(_text(left - 40, 18, y, "t"))
    parts.append(_text(left + across / 2, top + down + 40, x, "t", "middle"))
    ends = []
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        points = [at(a, b) for a, b in zip(xs, ys, strict=True)]
        colour = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if name in dashed else ""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        if dots and name not in dashed:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points
            ]
        ends.append((points[-1][1], points[-1][0], name, colour))
    lowest = 0.0
    for height, place, name, colour in sorted(ends):
        lowest = max(height, lowest + 17)  # names do not overlap
        parts.append(
            f'<text class="l" x="{place + 10:.1f}" y="{lowest + 4:.1f}" style="fill:{colour}">{escape(name)}</text>'
        )
    return _svg(left + across + right, top + down + 52, parts)


def bars(
    rows: Mapping[str, float], *, unit: str = "", digits: int = 1, total: float | None = None
) -> str:
    """Draws a bar for each named number, followed by the number and, with `total`, its share."""
    thick, left, across = 24, 112, 420
    longest = max(rows.values())
    parts = []
    for i, (label, number) in enumerate(rows.items()):
        y, length = 14 + thick * i, max(1.0, across * number / longest)
        share = f" ({number / total:.0%})" if total else ""
        parts.append(_text(left - 8, y + 11, label, "", "end"))
        parts.append(f'<path d="M{left} {y}h{length:.1f}v14h-{length:.1f}z" fill="{COLOURS[0]}"/>')
        parts.append(
            _text(left + length + 6, y + 11, f"{number:,.{digits}f} {unit}".rstrip() + share, "t")
        )
    return _svg(left + across + 150, 14 + thick * len(rows), parts)


def shades(
    matrix: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, title: str
) -> str:
    """Draws shares from 0 (white) to 1 (dark) as a table of boxes with row and column labels."""
    wide, high, left, top = 66, 28, 74, 66
    parts = [_text(14, 20, title, "t")]
    parts += [
        _text(left + wide * (j + 0.5), top - 10, label, "l", "middle")
        for j, label in enumerate(columns)
    ]
    for i, (label, row) in enumerate(zip(rows, matrix, strict=True)):
        y = top + high * i
        parts.append(_text(left - 12, y + 19, label, "l", "end"))
        for j, share in enumerate(row):
            place = f'x="{left + wide * j}" y="{y}" width="{wide}" height="{high}"'
            parts.append(
                f'<rect {place} fill="#1f4e9c" fill-opacity="{share:.2f}" stroke="#e3e3df"/>'
            )
            if share >= 0.005:
                white = "w" if share > 0.5 else ""
                parts.append(
                    _text(left + wide * (j + 0.5), y + 19, f"{share:.0%}", white, "middle")
                )
    return _svg(left + wide * len(columns) + 14, top + high * len(rows) + 14, parts)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img"><style>{STYLE}</style>'
        f'<path d="M0 0H{width:.0f}V{height:.0f}H0z" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
