"""Draws a graph of scalars as SVG, with every value, gradient and partial derivative.

    Path("graph.svg").write_text(drawing(y), encoding="utf-8")

Each box is one scalar: its name or the function that computed it, its value and its gradient.
Arrows point from inputs to results. Each shows the partial derivative by which the gradient is
multiplied in the backward pass.

The layout is layered, in four steps (Sugiyama et al. 1981): a scalar is placed to the right of all
its inputs; an arrow that crosses layers bends at a reserved place in each; layers are ordered for
few crossings; and each box moves as close to the height of its neighbours as its layer allows. It
suits graphs of up to 200 boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from lmsmith.errors import UsageError
from lmsmith.reference.scalar import Scalar

MOST_BOXES = 200
WIDTH, HEIGHT = 108, 58  # of a box
ACROSS, DOWN = 70, 16  # distance between layers; between boxes of a layer
TIPS = 18  # distance between arrows at one side of a box
MARGIN = 12
SWEEPS = 12

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1a1a1a}.n{font-weight:600}"
    ".v{fill:#1f4e9c}.g{fill:#b0471e}"
    ".s{font-size:10px;fill:#666;paint-order:stroke;stroke:#fff;stroke-width:4px}"
    "rect{fill:#f7f7f4;stroke:#8a8a86}.leaf{fill:#eaf1fb}.e{fill:none;stroke:#9a9a96}"
)


def drawing(end: Scalar) -> str:
    """The SVG of `end` and all it was computed from. Raises UsageError for over 200 scalars."""
    nodes = list(end.topological_order())
    if len(nodes) > MOST_BOXES:
        raise UsageError(
            f"a graph of {len(nodes):,} scalars is too large to draw: expected at most "
            f"{MOST_BOXES}. Draw one of the scalars it was computed from."
        )
    graph = _Graph(nodes)
    graph.order_layers()
    graph.place()
    right = MARGIN + len(graph.layers) * (WIDTH + ACROSS) - ACROSS + MARGIN
    bottom = max(graph.y) + HEIGHT / 2 + MARGIN
    arrows = "".join(_arrow(graph, edge) for edge in graph.edges)
    boxes = "".join(_box(node, graph.x(i), graph.y[i]) for i, node in enumerate(nodes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right:.0f}" height="{bottom:.0f}" '
        f'viewBox="0 0 {right:.0f} {bottom:.0f}" role="img"><style>{STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#9a9a96"/></marker></defs>'
        f'<path d="M0 0H{right:.0f}V{bottom:.0f}H0z" fill="#fff"/>\n{arrows}{boxes}</svg>\n'
    )


@dataclass
class _Edge:
    """From an input through the reserved places to the result, with the partial derivative."""

    path: list[int]
    slope: float
    tail: float = 0.0  # where it leaves its box, relative to the middle
    tip: float = 0.0  # where it enters the other box


class _Graph:
    """Places 0 to n - 1 are the scalars; the others are where an arrow passes through a layer."""

    def __init__(self, nodes: Sequence[Scalar]) -> None:
        number = {node: i for i, node in enumerate(nodes)}
        self.layer_of = _layers(nodes, number)
        self.edges: list[_Edge] = []
        for node in nodes:
            for input_, slope in zip(node.inputs, node.slopes, strict=True):
                start, stop = number[input_], number[node]
                between = range(self.layer_of[start] + 1, self.layer_of[stop])
                bends = list(range(len(self.layer_of), len(self.layer_of) + len(between)))
                self.layer_of.extend(between)
                self.edges.append(_Edge([start, *bends, stop], slope))
        self.before: list[list[int]] = [[] for _ in self.layer_of]
        self.after: list[list[int]] = [[] for _ in self.layer_of]
        for edge in self.edges:
            for left, right in pairwise(edge.path):
                self.after[left].append(right)
                self.before[right].append(left)
        self.layers: list[list[int]] = [[] for _ in range(max(self.layer_of) + 1)]
        for place, layer in enumerate(self.layer_of):
            self.layers[layer].append(place)
        self.n_boxes = len(nodes)
        self.y = [0.0] * len(self.layer_of)

    def x(self, place: int) -> float:
        return MARGIN + self.layer_of[place] * (WIDTH + ACROSS)

    def order_layers(self) -> None:
        """Sorts each layer by the mean rank of its neighbours, back and forth, and keeps the order
        with the fewest crossings.
        """
        best, fewest = [list(layer) for layer in self.layers], self._crossings()
        for sweep in range(SWEEPS):
            neighbours = self.before if sweep % 2 == 0 else self.after
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                rank = self._ranks()
                layer.sort(
                    key=lambda place: _mean([rank[n] for n in neighbours[place]], rank[place])
                )
            if self._crossings() < fewest:
                best, fewest = [list(layer) for layer in self.layers], self._crossings()
        self.layers = best

    def _ranks(self) -> list[float]:
        rank = [0.0] * len(self.layer_of)
        for layer in self.layers:
            for i, place in enumerate(layer):
                rank[place] = i
        return rank

    def _crossings(self) -> int:
        rank, n = self._ranks(), 0
        for layer in self.layers:
            ends = [(rank[left], rank[right]) for left in layer for right in self.after[left]]
            n += sum(
                (a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[:i]
            )
        return n

    def place(self) -> None:
        """Chooses heights: each layer as close as possible (least squares) to its neighbours' mean
        heights.
        """
        for layer in self.layers:
            self._settle(layer, [0.0] * len(layer))
        for sweep in range(SWEEPS):
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                wanted = [
                    _mean([self.y[n] for n in self.before[p] + self.after[p]], self.y[p])
                    for p in layer
                ]
                self._settle(layer, wanted)
        top = min(self.y) - HEIGHT / 2 - MARGIN
        self.y = [y - top for y in self.y]
        for place in range(self.n_boxes):
            out = sorted(
                (e for e in self.edges if e.path[0] == place), key=lambda e: self.y[e.path[1]]
            )
            into = sorted(
                (e for e in self.edges if e.path[-1] == place), key=lambda e: self.y[e.path[-2]]
            )
            for edge, offset in zip(out, _spread(len(out)), strict=True):
                edge.tail = offset
            for edge, offset in zip(into, _spread(len(into)), strict=True):
                edge.tip = offset

    def _settle(self, layer: Sequence[int], wanted: Sequence[float]) -> None:
        """Least squares with the order and distances kept: boxes that would overlap move as one
        block.
        """
        offsets, at = [], 0.0
        for i, place in enumerate(layer):
            if i:
                at += DOWN + (self._height(layer[i - 1]) + self._height(place)) / 2
            offsets.append(at)
        blocks: list[tuple[float, int]] = []  # mean of (wanted - offset), number of places
        for want, offset in zip(wanted, offsets, strict=True):
            level, n = want - offset, 1
            while blocks and blocks[-1][0] >= level:
                other, m = blocks.pop()
                level, n = (level * n + other * m) / (n + m), n + m
            blocks.append((level, n))
        levels = [level for level, n in blocks for _ in range(n)]
        for place, level, offset in zip(layer, levels, offsets, strict=True):
            self.y[place] = level + offset

    def _height(self, place: int) -> float:
        return HEIGHT if place < self.n_boxes else 0.0


def _layers(nodes: Sequence[Scalar], number: dict[Scalar, int]) -> list[int]:
    """A result is one layer to the right of its last input, a leaf just left of its first use."""
    layer = [0] * len(nodes)
    for i, node in enumerate(nodes):
        layer[i] = max((layer[number[input_]] + 1 for input_ in node.inputs), default=0)
    first_use: dict[int, int] = {}
    for i, node in enumerate(nodes):
        for input_ in node.inputs:
            first_use[number[input_]] = min(layer[i], first_use.get(number[input_], layer[i]))
    return [layer[i] if node.inputs else first_use.get(i, 1) - 1 for i, node in enumerate(nodes)]


def _spread(n: int) -> list[float]:
    """Positions at which n arrows meet the side of a box, relative to its middle."""
    return [(i - (n - 1) / 2) * min(TIPS, HEIGHT / n) for i in range(n)]


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise


def _arrow(graph: _Graph, edge: _Edge) -> str:
    """A curve that is level at each place, with the partial derivative in the middle of its last
    part.
    """
    start = graph.x(edge.path[0]) + WIDTH, graph.y[edge.path[0]] + edge.tail
    path = f"M{start[0]:.0f} {start[1]:.1f}"
    for place in edge.path[1:]:
        x, y = graph.x(place), graph.y[place] + (edge.tip if place == edge.path[-1] else 0)
        middle = (start[0] + x) / 2
        path += f"C{middle:.0f} {start[1]:.1f} {middle:.0f} {y:.1f} {x:.0f} {y:.1f}"
        last, start = start, (x, y)
        if place != edge.path[-1]:  # go straight through the layer
            path += f"H{x + WIDTH:.0f}"
            start = x + WIDTH, y
    label = (last[0] + start[0]) / 2 - 4, (last[1] + start[1]) / 2 - 3
    text = (
        f'<text class="s" text-anchor="middle" x="{label[0]:.0f}" '
        f'y="{label[1]:.1f}">&#215;{digits(edge.slope)}</text>'
    )
    return f'<path class="e" d="{path}" marker-end="url(#tip)"/>{text}\n'


def _box(node: Scalar, x: float, y: float) -> str:
    top, left = y - HEIGHT / 2, x + 8
    title = ": ".join(part for part in (node.name, node.function) if part) or "number"
    kind = "" if node.inputs else 'class="leaf" '
    return (
        f'<rect {kind}x="{x:.0f}" y="{top:.1f}" width="{WIDTH}" height="{HEIGHT}" '
        f'rx="5"/><text class="n" x="{left:.0f}" y="{top + 17:.1f}">{escape(title)}</text>'
        f'<text class="v" x="{left:.0f}" y="{top + 34:.1f}">value {digits(node.value)}</text>'
        f'<text class="g" x="{left:.0f}" y="{top + 50:.1f}">grad {digits(node.grad)}</text>\n'
    )


def digits(value: float) -> str:
    """The value with four digits and a proper minus sign."""
    return f"{value + 0.0:.4g}".replace("-", "&#8722;")
