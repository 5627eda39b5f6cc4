"""Ticks and smoothing have the promised properties; curves are read back from the SVG."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.report.charts import Line, legend, line_chart, smooth, thin, tick_text, ticks
from lmsmith.report.page import duration, short, text


@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e6), st.integers(2, 8))
def test_ticks_are_round_evenly_apart_and_about_as_many_as_asked(
    low: float, span: float, n: int
) -> None:
    found = ticks(low, low + span, n)
    assert n / 2 - 1 <= len(found) <= 2 * n + 1
    for value in found:
        assert low - 1e-6 * span <= value <= low + span * (1 + 1e-6)
    for step in np.diff(found):
        digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(digits - round_one) for round_one in (1, 2, 2.5, 5)) < 1e-3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2000, ["0", "500", "1000", "1500", "2000"]),
        (1.4, 2.2, ["1.4", "1.6", "1.8", "2.0", "2.2"]),
        (1.2, 2.45, ["1.25", "1.50", "1.75", "2.00", "2.25"]),
        (0, 0.003, ["0", "0.0005", "0.001", "0.0015", "0.002", "0.0025", "0.003"]),
        (0, 2e5, ["0", "50k", "100k", "150k", "200k"]),
        (3, 3, ["3"]),
    ],
)
def test_tick_labels(low: float, high: float, expected: list[str]) -> None:
    found = ticks(low, high, 5)
    assert [tick_text(value, found) for value in found] == expected


def test_smoothing_has_no_lag_and_preserves_lines_constants_and_gaps() -> None:
    straight = np.linspace(5, 1, 200)
    np.testing.assert_allclose(smooth(straight, 4)[20:-20], straight[20:-20])
    np.testing.assert_allclose(smooth(np.full(9, 2.5), 50), 2.5)
    gap = np.array([1.0, 1.0, math.nan, 1.0])
    np.testing.assert_allclose(smooth(gap, 2), gap)
    bump = np.zeros(101)
    bump[50] = 1
    smoothed = smooth(bump, 5)
    assert smoothed.argmax() == 50
    np.testing.assert_allclose(smoothed, smoothed[::-1], atol=1e-12)
    assert smoothed[50] == pytest.approx(1 / (5 * math.sqrt(2 * math.pi)), rel=1e-3)
    assert len(smooth(np.array([]), 3)) == 0


def test_thinning_averages_neighbours() -> None:
    assert thin(np.arange(10.0), 5).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert thin(np.arange(4.0), 5).tolist() == [0, 1, 2, 3]


def test_a_curve_matches_its_values_and_breaks_at_gaps() -> None:
    line = Line(
        np.array([0.0, 50, 75, 100]), np.array([3.0, 2, math.nan, 1]), 9, dots=True, label="a<b"
    )
    chart = line_chart("L", [line], x_label="steps", y_range=(1.0, 3.0))
    (drawn,) = re.findall(r'class="strong"[^>]* d="([^"]*)"', chart)
    points = [
        (cut, float(x), float(y)) for cut, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", drawn)
    ]
    assert [cut for cut, _, _ in points] == ["M", "L", "M"]
    np.testing.assert_allclose(
        [x for _, x, _ in points], np.array([0, 500, 1000]) / 1.015, atol=0.06
    )
    np.testing.assert_allclose([y for *_, y in points], [0, 500, 1000], atol=0.06)
    assert "var(--c1)" in chart  # the tenth curve has the second colour, and dashes
    assert "stroke-dasharray" in chart
    assert re.findall("<title>(.*?)</title>", chart) == [
        f"a&lt;b {y}.0000 at {x} steps" for x, y in ((0, 3), (50, 2), (100, 1))
    ]
    assert "a&lt;b" in legend([line])


def test_a_chart_without_values() -> None:
    empty = Line(np.array([]), np.array([]), 0)
    assert "<svg" in line_chart("L", [empty], x_label="steps", y_range=(0.0, 1.0))
    one = Line(np.array([0.0]), np.array([0.0]), 0)
    assert "<svg" in line_chart("L", [one, empty], x_label="steps", y_range=(0.0, 0.0))


def test_numbers_in_words() -> None:
    assert [short(value) for value in (0, 12.5, 999, 1500, 10_646_784, 1.5e9, 999_600)] == [
        "0", "12.5", "999", "1.5k", "10.6M", "1.5G", "1M",
    ]  # fmt: skip
    assert [duration(s) for s in (None, math.nan, 0.04, 8.31, 59.96, 61, 3599.6, 7300)] == [
        "—", "—", "0.0 s", "8.3 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip
    assert (
        text('<a href="x">\x00\x1b[0m\ud800&\n\t') == "&lt;a href=&quot;x&quot;&gt;␀␛[0m?&amp;\n\t"
    )


def test_a_logarithmic_axis_has_powers_of_two() -> None:
    line = Line(
        np.array([70.0, 300.0, 4000.0]), np.array([1.0, 2.0, 3.0]), 0, dots=True, label="BPE"
    )
    chart = line_chart("L", [line], x_label="entries", y_range=(0.0, 4.0), log2_x=True)
    assert 'class="chart log2"' in chart  # whose style draws a dot at the edge whole
    shown = re.findall(r'<i style="left:([\d.]+)%">([\d,]+)</i>', chart)
    assert [words for _, words in shown] == ["64", "128", "256", "512", "1,024", "2,048", "4,096"]
    assert [float(place) for place, _ in shown] == pytest.approx(
        [100 * i / 6 for i in range(7)], abs=0.01
    )
    assert "BPE 2.0000 at 300 entries" in chart
    one = Line(np.array([256.0]), np.array([1.0]), 0, dots=True)
    assert "<svg" in line_chart("L", [one], x_label="entries", y_range=(0.0, 4.0), log2_x=True)
    many = Line(np.array([64.0, 200_000.0]), np.array([1.0, 2.0]), 0)
    chart = line_chart("L", [many], x_label="entries", y_range=(0.0, 4.0), log2_x=True)
    assert len(re.findall(r'<i style="left', chart)) <= 8
