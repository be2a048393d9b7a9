import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from robustcompress.report.comparison import (
    Comparison,
    Row,
    Timing,
    compared,
    protocol_text,
    rows_of,
)
from robustcompress.report.comparison_table import comparison_table, print_comparison
from robustcompress.report.model import Report
from robustcompress.robustness.alarms import kinds
from robustcompress.robustness.alarms.check import judged
from robustcompress.robustness.alarms.reliability import Reliability
from robustcompress.robustness.measurement import Count

PROTOCOL = {
    "threat": "Linf eps 0.1",
    "attacks": "PGD-20x1",
    "settings": "[]",
    "access": "white-box",
    "images": "1,000 test",
    "data": "mini",
    "subset": "{}",
}


def row(name: str, size: int, robust: int | None, **changes: object) -> Row:
    count = None if robust is None else Count(correct=robust, count=100)
    clean = Count(correct=90, count=100)
    values = {"name": name, "size_bytes": size, "robust": count, "clean": clean, "macs": 10, "sparsity": 0.9}
    return Row.model_validate({**values, "protocol": PROTOCOL, **changes})


def front(comparison: Comparison) -> list[str]:
    return [item.name for item in comparison.rows if item.on_front]


def text(comparison: Comparison) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(comparison_table(comparison))
    return captured.get()


def test_rows_of_a_report_are_its_files(report: Report) -> None:
    (only,) = rows_of(report, "runs/a")
    assert (only.name, only.size_bytes, only.macs) == ("runs/a/model.onnx", 100_392, 506_176)
    assert only.sparsity == pytest.approx(0.9, abs=1e-4)
    assert only.clean == Count(correct=801, count=1000)
    assert only.robust == Count(correct=641, count=1000)
    assert only.certified == Count(correct=113, count=200)  # the best certifier's at 0.1, not at 0.05
    assert only.note == ""
    assert only.protocol["threat"] == "Linf eps 0.1"
    assert only.protocol["access"] == "transfer"


def test_a_run_that_exported_nothing_gives_a_row_of_its_network(report: Report) -> None:
    (only,) = rows_of(report.model_copy(update={"files": ()}), "runs/a")
    assert (only.name, only.size_bytes, only.protocol["access"]) == ("runs/a", 110_327, "white-box")


def test_a_run_that_was_not_attacked_is_not_ranked(report: Report) -> None:
    clean = tuple(item for item in report.measurements if item.attack == "clean")
    (only,) = rows_of(report.model_copy(update={"measurements": clean}), "runs/a")
    assert (only.robust, only.note, only.certified) == (None, "it was not attacked", None)
    found = compared([only, row("b", 5, 50)])
    assert front(found) == ["b"]


def test_an_unreliable_robust_accuracy_is_withheld(report: Report) -> None:
    fired = judged(kinds.RANDOM, 50, 50, alpha=0.001)
    alarmed = Reliability(images=60, right=50, alpha=0.01, checks=(fired,), numbers={})
    (only,) = rows_of(report.model_copy(update={"reliability": {"model.onnx": alarmed}}), "runs/a")
    assert only.robust is None
    assert only.note == "alarms: its robust accuracy is not to be believed"
    assert "64.1%" not in text(compared([only]))


def test_the_front_holds_what_nothing_else_beats() -> None:
    found = compared(
        [row("d", 40, 40), row("a", 10, 30), row("b", 20, 50), row("c", 30, 45), row("e", 50, 60)]
    )
    assert [item.name for item in found.rows] == ["a", "b", "c", "d", "e"]
    assert front(found) == ["a", "b", "e"]


def test_equals_are_both_on_the_front() -> None:
    assert front(compared([row("a", 10, 30), row("b", 10, 30), row("c", 10, 29), row("d", 11, 30)])) == [
        "a",
        "b",
    ]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_every_row_off_the_front_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    found = compared([row(str(i), size, robust) for i, (size, robust) in enumerate(points)])
    best = {(item.size_bytes, item.robust.correct) for item in found.rows if item.on_front and item.robust}
    for size, robust in points:
        beaten = any(a <= size and b >= robust and (a, b) != (size, robust) for a, b in points)
        assert ((size, robust) in best) == (not beaten)
    for (a, b), (c, d) in itertools.combinations(sorted(best), 2):
        assert a < c
        assert b < d


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("threat", "Linf eps 0.2"),
        ("attacks", "PGD-5x1"),
        ("settings", "[1]"),
        ("images", "50 test"),
        ("data", "x"),
    ],
)
def test_a_row_that_was_measured_otherwise_is_shown_and_not_ranked(part: str, value: str) -> None:
    odd = row("odd", 1, 99, protocol={**PROTOCOL, part: value})
    found = compared([odd, row("a", 10, 30), row("b", 20, 50)])
    assert front(found) == ["a", "b"]
    assert found.rows[0].note == f"other {part}: {value} instead of {PROTOCOL[part]}"
    assert found.protocol == PROTOCOL
    assert "99.0%" in text(found)


def test_rows_without_a_robust_accuracy_do_not_decide_what_is_usual() -> None:
    other = {**PROTOCOL, "threat": "L2 eps 1"}
    silent = [row(name, 5, None, protocol=other, note="no") for name in "xyz"]
    assert compared([*silent, row("a", 10, 30)]).protocol == PROTOCOL
    assert compared(silent).protocol == {}
    assert protocol_text({}) == "no robust accuracy was measured"


def printed(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        print_comparison(comparison, console)
    return captured.get()


def test_the_table_shows_every_number() -> None:
    certified = Count(correct=7, count=100)
    timing = Timing(median_ms=1.234, low_ms=1, high_ms=2, calls=9)
    timed = row("a", 12_345, 30, timing=timing, certified=certified, macs=430_222)
    shown = printed(compared([timed], machine="a machine", left_out=["runs/x: nothing"]))
    parts = ("12,345", "1.23", "430k", "90.0%", "30.0%", "7.0%", "*", "Linf eps 0.1", "a machine")
    for part in (*parts, "left out: runs/x: nothing"):
        assert part in shown


def test_columns_without_a_value_are_left_out_and_notes_stand_beneath() -> None:
    odd = row("runs/odd/m.onnx", 10, 99, protocol={**PROTOCOL, "data": "x"})
    found = compared([odd, *(row(f"runs/{n}/m.onnx", n, 30) for n in (1, 2))])
    shown = printed(found)
    assert "ms" not in shown.split("files are in")[0].split()
    assert "proven" not in shown
    assert "1: not ranked: other data: x instead of mini" in shown
    assert "files are in runs\n" in shown
    assert "runs/odd" not in shown
    assert "odd/m.onnx" in shown
    assert len(set(map(len, shown.split("files are in")[0].splitlines()[2:8]))) == 1  # no cell was broken


def test_files_of_no_common_folder_keep_their_names() -> None:
    shown = printed(compared([row("runs/a/m.onnx", 1, 30), row("/data/m.onnx", 2, 40)]))
    assert "files are in" not in shown
    assert "/data/m.onnx" in shown


def test_a_comparison_is_the_same_after_json() -> None:
    found = compared([row("a", 10, 30), row("b", 20, 50)])
    assert Comparison.model_validate_json(found.model_dump_json()) == found
