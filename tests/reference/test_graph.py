"""The drawing, parsed as a browser would: boxes, words and their positions."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from lmsmith.errors import UsageError
from lmsmith.reference.graph import drawing
from lmsmith.reference.scalar import MLP, Scalar

SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg: ET.Element) -> list[tuple[float, float, float, float]]:
    return [
        tuple(float(box.get(key)) for key in ("x", "y", "width", "height"))
        for box in svg.iter(f"{SVG}rect")
    ]


def words(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


def network_loss(sizes: list[int]) -> Scalar:
    net = MLP(sizes, np.random.default_rng(0))
    loss = (net([0.5] * sizes[0])[0] - 1) ** 2 + net.parameters()[0]
    loss.backward()
    return loss


def test_every_box_shows_function_value_and_gradient():
    a, b = Scalar(3.0, "a"), Scalar(-2.0, "a < b")
    y = (a * b).tanh()
    y.name = "y"
    y.backward()
    found = words(ET.fromstring(drawing(y)))
    assert {"a", "a < b", "*", "y: tanh"} <= set(found)
    assert {"value 3", "value \u22122", "value \u22126"} <= set(found)
    assert f"grad {-2 * (1 - np.tanh(-6) ** 2):.4g}".replace("-", "\u2212") in found
    assert {"\u00d7\u22122", "\u00d73"} <= set(found)  # the partial derivatives, on the arrows


@pytest.mark.parametrize("sizes", [[1, 1], [2, 3, 1], [4, 6, 3, 1]])
def test_no_two_boxes_overlap_and_all_are_in_the_picture(sizes):
    loss = network_loss(sizes)
    svg = ET.fromstring(drawing(loss))
    found = boxes(svg)
    assert len(found) == len(list(loss.topological_order()))
    for i, (x, y, w, h) in enumerate(found):
        assert min(x, y) >= 0
        assert x + w <= float(svg.get("width"))
        assert y + h <= float(svg.get("height"))
        for x2, y2, _, _ in found[:i]:
            assert x2 >= x + w or x >= x2 + w or y2 >= y + h or y >= y2 + h


@pytest.mark.parametrize("sizes", [[2, 3, 1], [4, 6, 3, 1]])
def test_arrows_go_to_the_right_and_through_no_box(sizes):
    svg = ET.fromstring(drawing(network_loss(sizes)))
    arrows = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("class") == "e"]
    assert arrows
    for arrow in arrows:
        x = y = 0.0
        for letter, rest in re.findall(r"([MCH])([^MCH]*)", arrow):
            numbers = [float(number) for number in rest.split()]
            end = (numbers[0], y) if letter == "H" else (numbers[-2], numbers[-1])
            assert end[0] > x
            if letter != "M":
                # a curve stays between the heights of its ends, and no boxes are between layers
                for left, top, width, height in boxes(svg):
                    across = max(x, left) < min(end[0], left + width)
                    assert not (across and top < y < top + height)
            x, y = end


def test_straight_chains_are_drawn_straight():
    y = Scalar(0.5)
    for _ in range(4):
        y = y.tanh()
    assert len({round(top, 3) for _, top, _, _ in boxes(ET.fromstring(drawing(y)))}) == 1


def test_the_drawing_is_the_same_each_time():
    assert drawing(network_loss([2, 3, 1])) == drawing(network_loss([2, 3, 1]))


def test_too_large_graphs_are_refused():
    y = Scalar(1.0)
    for _ in range(200):
        y = -y
    with pytest.raises(UsageError, match="201 scalars is too large"):
        drawing(y)


def test_boxes_of_a_layer_are_a_gap_apart():
    tops = sorted(
        (x, y, h) for x, y, _, h in boxes(ET.fromstring(drawing(network_loss([3, 3, 1]))))
    )
    for (x, y, h), (x2, y2, _) in pairwise(tops):
        assert x != x2 or y2 - (y + h) > 10
