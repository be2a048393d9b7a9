from xml.etree import ElementTree

import pytest

from robustcompress.report.comparison import Timing, compared
from robustcompress.report.comparison_page import render_comparison, robust_by_bytes
from tests.report.test_comparison import PROTOCOL, row

ROWS = [
    row("runs/a/model.onnx", 1_000, 30, timing=Timing(median_ms=1.5, low_ms=1.25, high_ms=1.75, calls=9)),
    row("runs/b/model.onnx", 20_000, 50),
    row("<script>alert(1)</script>", 30_000, 40),
    row("odd", 10, 99, protocol={**PROTOCOL, "threat": "Linf eps 0.2"}),
    row("silent", 20, None, note="it was not attacked"),
]


def test_the_page_holds_every_row_and_runs_nothing() -> None:
    page = render_comparison(compared(ROWS, machine="a machine", left_out=["runs/x: <nothing>"]))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("Pareto front</span>") == 2
    assert "other threat: Linf eps 0.2 instead of Linf eps 0.1" in page
    assert "1.5 (1.25 to 1.75)" in page
    assert "runs/x: &lt;nothing&gt;" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_the_same_comparison_gives_the_same_bytes() -> None:
    found = compared(ROWS)
    assert render_comparison(found) == render_comparison(found)


def test_the_picture_says_in_words_what_it_shows() -> None:
    svg = str(robust_by_bytes(compared(ROWS)))
    label = ElementTree.fromstring(svg).attrib["aria-label"]
    assert "runs/a/model.onnx: 1,000 bytes, 30.0%, on the front" in label
    assert "odd: 10 bytes, 99.0%, not ranked" in label
    assert "silent" not in label


@pytest.mark.parametrize("sizes", [(100, 100), (100, 150), (10, 10_000_000)])
def test_sizes_near_and_far_are_drawn(sizes: tuple[int, int]) -> None:
    drawn = robust_by_bytes(compared([row(str(size), size, 50 + i) for i, size in enumerate(sizes)]))
    assert drawn.startswith("<svg")


def test_without_a_robust_accuracy_there_is_a_table_alone() -> None:
    page = render_comparison(compared(ROWS[-1:]))
    assert "<svg" not in page
    assert "it was not attacked" in page
