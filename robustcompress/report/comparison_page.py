"""A comparison as one HTML page that needs nothing else."""

import math
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from robustcompress.report.charts import WIDE, human_bytes
from robustcompress.report.comparison import Comparison, Row, percent, protocol_text
from robustcompress.report.svg import BLUE, GREY, INK, ORANGE, printable, render_svg


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as a self-contained HTML page; the same comparison gives the same bytes."""
    return _template().render(
        comparison=comparison,
        protocol=protocol_text(comparison.protocol),
        picture=robust_by_bytes(comparison) if any(row.robust for row in comparison.rows) else None,
        percent=percent,
    )


def robust_by_bytes(comparison: Comparison) -> Markup:
    """Draw robust accuracy against bytes, the Pareto front as steps.

    Args:
        comparison: One row or more with a robust accuracy. Those that are not ranked are drawn hollow.
    """
    shown = [(row, row.robust.accuracy) for row in comparison.rows if row.robust is not None]
    front = sorted((row.size_bytes, accuracy) for row, accuracy in shown if row.on_front)
    sizes = [row.size_bytes for row, _ in shown]
    logarithmic = max(sizes) > 4 * min(sizes)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if logarithmic:
            axes.set_xscale("log")
        right = max(sizes) * (4 if logarithmic else 1.3)
        if front:
            x, y = [size for size, _ in front], [accuracy for _, accuracy in front]
            axes.step([*x, right], [*y, y[-1]], where="post", color=ORANGE, label="Pareto front")
        for row, accuracy in shown:
            colour = GREY if row.note else ORANGE if row.on_front else BLUE
            axes.plot(
                row.size_bytes, accuracy, marker="o", markersize=6, color=colour,
                fillstyle="none" if row.note else "full", linestyle="", clip_on=False,
            )  # fmt: skip
            axes.annotate(
                printable(row.name), (row.size_bytes, accuracy), xytext=(6, 5), textcoords="offset points",
                fontsize=8.5, color=INK,
            )  # fmt: skip
        axes.set_xlim(_left(sizes, logarithmic=logarithmic), right)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
        axes.set_xlabel("bytes")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("robust accuracy")
        if front:
            figure.legend(loc="outside upper left")

    told = "; ".join(_told(row) for row, _ in shown)
    return render_svg(
        draw, size=(WIDE, 4.6), name="robust-by-bytes", label=f"Robust accuracy by bytes. {told}."
    )


def _left(sizes: list[int], *, logarithmic: bool) -> float:
    return 10 ** (math.log10(min(sizes)) - 0.15) if logarithmic else 0.0


def _told(row: Row) -> str:
    mark = ", on the front" if row.on_front else ", not ranked" if row.note else ""
    return f"{row.name}: {row.size_bytes:,} bytes, {percent(row.robust)}{mark}"


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("robustcompress.report").joinpath("comparison.html").read_text(encoding="utf-8")
    return environment.from_string(source)
