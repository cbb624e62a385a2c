"""Lines over time."""

import re

import numpy as np
from longtake.demos.plots import HEIGHT, WIDTH, line_plot


def points(svg: str) -> np.ndarray:
    text = re.search(r'points="([^"]+)"', svg)
    assert text is not None
    return np.array([[float(number) for number in pair.split(",")] for pair in text[1].split()])


def test_a_spike_is_never_lost_and_the_line_stays_inside() -> None:
    values = np.ones(12000)
    values[7001] = 9.0
    line = points(line_plot("change", values, 12.0))
    assert len(line) <= 600 and line[:, 1].min() == 8.0, "the spike reaches the top"
    assert (line[:, 0] >= 0).all() and (line[:, 0] <= WIDTH).all() and (line[:, 1] <= HEIGHT).all()
    assert (np.diff(line[:, 0]) >= 0).all()


def test_marks_axis_and_odd_values() -> None:
    plot = line_plot("a < b", [0.0, float("nan"), 2.0, 1.0], 2.0, [1.0], low=0.0, high=4.0)
    assert plot.count('class="mark"') == 1 and "a &lt; b" in plot and len(points(plot)) == 3
    assert line_plot("flat", [3.0, 3.0, 3.0], 1.0).count("<polyline") == 1
    assert line_plot("nothing", [float("nan")], 1.0) == ""
