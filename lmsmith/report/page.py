"""The HTML document around a report, with its style sheet, and the formatting of values.

The file is self-contained: no scripts, fonts or images are loaded, and the content security policy
forbids the browser to load any. Light or dark mode follows the reader's system. Below 860 pixels of
width the page has a single column.
"""

import math
from collections.abc import Sequence
from html import escape

BEGINNING = "<!doctype html>"
_PICTURE_OF_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    127: 0x2421
}


def page(title: str, body: str, *, style: str = "", pictures: bool = False) -> str:
    """Returns the complete HTML document with this title and this HTML body.

    `style`: more style rules. `pictures`: allow images inside the file (data: addresses).
    """
    images = "; img-src data:" if pictures else ""
    return (
        f'{BEGINNING}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'{images}\">\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def text(raw: object) -> str:
    """Escapes `raw` for HTML. Shows control characters as their Unicode symbols, and lone
    surrogates as question marks.
    """
    shown = str(raw).translate(_PICTURE_OF_CONTROL).encode("utf-8", "replace").decode("utf-8")
    return escape(shown)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of HTML cells; the first cell of each row is its header. Scrolls if it is
    wider than the page.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = ""
    for first, *others in rows:
        body += (
            f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(value: float | None, form: str) -> str:
    """Returns a number in this format; a dash for None."""
    return "—" if value is None else format(value, form)


def short(value: float) -> str:
    """1500 -> 1.5k, 10_646_784 -> 10.6M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """8.31 -> 8.3 s, 61 -> 1 min 1 s, 7300 -> 2 h 2 min."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


_STYLE = """
:root {
  --page: #f5f4f0; --card: #fffefb; --mark: #f0ede4; --rule: #e3e0d7; --ink: #21201c; --soft: #6d6a62;
  --c0: #2760c9; --c1: #d9731a; --c2: #12876f; --c3: #8350cf; --c4: #cf3a78; --c5: #94790a; --c6: #2094c4;
  --c7: #7b5540; --quiet: #bcb9b0; --floor: #c0453b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121214; --card: #1b1b1f; --mark: #27272d; --rule: #323238; --ink: #eae8e3; --soft: #9d9a92;
    --c0: #74a3ff; --c1: #ff9e4f; --c2: #3cc9ab; --c3: #b894ff; --c4: #ff7dab; --c5: #d3b640; --c6: #63c8f2;
    --c7: #c79a80; --quiet: #5a5a61; --floor: #e0766c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
header p { margin: 8px 0 0; color: var(--soft); font-size: 17px; }
.brand { color: var(--soft); font-size: 13px; font-weight: 600; letter-spacing: .09em; text-transform: uppercase; }
h1 { margin: 2px 0 0; font-size: clamp(28px, 5vw, 42px); line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 48px 0 14px; font-size: 21px; letter-spacing: -.01em; }
p { max-width: 52em; }
th .about { color: var(--soft); font-size: 13px; font-weight: 400; }
.notice p { margin: 2px 0; }
p.about { margin: -6px 0 14px; color: var(--soft); font-size: 15px; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13.5px; }
code { padding: 2px 6px; border-radius: 4px; background: var(--mark); overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; }
.card, .tiles > div, .chart, .scroll, details, .notice {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.notice { margin: 0 0 24px; padding: 12px 18px; border-left: 4px solid var(--c1); }
.scroll + p.about, p.about + p.about { margin-top: 10px; }
.notice ul { margin: 4px 0 0; padding-left: 20px; }

.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 0; }
.tiles > div { padding: 14px 18px; min-width: 0; }
.tiles dt, .tiles .note { color: var(--soft); font-size: 14px; }
.tiles dd { margin: 0; overflow-wrap: anywhere; }
.tiles .figure { font-size: 28px; font-weight: 600; line-height: 1.3; letter-spacing: -.02em; }
.tiles .lead .figure { color: var(--c0); }

.charts { display: grid; gap: 14px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.charts.small { grid-template-columns: repeat(3, minmax(0, 1fr)); margin-top: 14px; }
.chart { margin: 0; padding: 14px 16px 10px; }
.chart figcaption { margin-bottom: 12px; font-size: 15px; font-weight: 600; }
.plot { position: relative; height: 270px; margin: 0 4px 26px 42px; }
.small .plot { height: 130px; }
.plot svg { position: absolute; width: 100%; height: 100%; overflow: hidden; }
.log2 svg { overflow: visible; }
.log2 .plot { margin-right: 24px; }
.chart .legend { margin: 10px 0 0; gap: 2px 20px; font-size: 13px; }
.plot path, .legend path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
path.strong { stroke-width: 2.25; }
path.soft { stroke-width: 1.5; }
path.faint { stroke-width: 1; opacity: .32; }
path.dot { stroke-width: 7; stroke-linecap: round; }
path.grid { stroke: var(--rule); stroke-width: 1; }
.plot i { position: absolute; color: var(--soft); font-size: 12px; font-style: normal; line-height: 1;
  white-space: nowrap; }
.plot .x { position: absolute; left: 0; right: 0; top: calc(100% + 8px); }
.plot .x i { transform: translateX(-50%); }
.plot .y { position: absolute; top: 0; bottom: 0; right: calc(100% + 8px); }
.plot .y i { right: 0; transform: translateY(-50%); }
.x-label { color: var(--soft); font-size: 12.5px; text-align: right; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; padding: 0; list-style: none;
  font-size: 15px; }
.legend li { display: flex; align-items: center; gap: 8px; min-width: 0; overflow-wrap: anywhere; }
.legend svg { flex: none; width: 22px; height: 10px; }

.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 15px; }
th, td { padding: 9px 16px; border-top: 1px solid var(--rule); text-align: right; }
td { white-space: nowrap; }
tr:first-child > * { border-top: 0; }
tbody tr:first-child > * { border-top: 1px solid var(--rule); }
.bits tbody tr:first-child > * { border-top: 0; }
thead th { color: var(--soft); font-size: 13.5px; font-weight: 500; white-space: nowrap; }
tbody th { min-width: 8.5em; font-weight: 500; }
th:first-child { text-align: left; }
td b { color: var(--c0); }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 9px; border-radius: 3px; }
.bits th { min-width: 0; }
.bits .bars { position: relative; width: 45%; padding: 0; }
.bits .about { color: var(--soft); font-size: 14px; text-align: left; }
.bar { position: absolute; left: 0; top: calc(50% - 12px); height: 24px; min-width: 2px; border-radius: 3px; }
.own th, .own td:not(.about) { font-weight: 700; }
.floor { position: absolute; top: 0; bottom: -1px; border-left: 2px dotted var(--floor); }

.facts { margin: 0; padding: 12px 18px; columns: 2; column-gap: 48px; }
.facts div { display: flex; justify-content: space-between; gap: 16px; padding: 4px 0; font-size: 15px;
  break-inside: avoid; }
.facts dt { color: var(--soft); white-space: nowrap; }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
details { margin: 10px 0 0; overflow: hidden; }
summary { padding: 10px 18px; font-weight: 500; cursor: pointer; overflow-wrap: anywhere; }
summary span { margin-left: 12px; color: var(--soft); font-size: 14.5px; font-weight: 400; }
details > :not(summary) { margin: 0; padding: 14px 18px; border-top: 1px solid var(--rule); }
details > ul { padding-left: 36px; }
.sample { font: 16.5px/1.6 Charter, "Iowan Old Style", Georgia, "Noto Serif", "DejaVu Serif", serif; }
.next { margin: 0; padding: 0; list-style: none; }
.next li { padding: 12px 18px 14px; border-top: 1px solid var(--rule); }
.next li:first-child { border-top: 0; }
.next code { display: inline-block; margin-top: 5px; padding: 4px 10px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13.5px; overflow-wrap: anywhere; }

@media (max-width: 860px) {
  main { padding: 24px 14px 48px; }
  h2 { margin-top: 36px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .tiles > div { padding: 10px 13px; }
  .tiles .figure { font-size: 23px; }
  .charts, .charts.small { grid-template-columns: minmax(0, 1fr); }
  .plot { height: 220px; }
  .facts { columns: 1; }
  th, td { padding: 8px 10px; }
  .bits .about { display: none; }
}
@media print { details { break-inside: avoid; } }
"""
