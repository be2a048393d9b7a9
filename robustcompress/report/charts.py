"""The pictures of the report, each a function from a part of the report to an SVG element."""

from collections.abc import Sequence
from itertools import cycle

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from robustcompress.report.model import CertifiedInfo, Curve, FileInfo, LayerInfo, SiteHistogram, StageInfo
from robustcompress.report.svg import BLUE, FAINT, GREEN, GREY, INK, ORANGE, printable, render_svg
from robustcompress.robustness.measurement import wilson_interval

COLUMN = 5.4
"""Width in inches of a picture in one of the page's two columns."""
WIDE = 2 * COLUMN
LARGEST_SITES = 6


def accuracy_by_stage(stages: Sequence[StageInfo]) -> Markup:
    """Draw clean and attacked (or certified) validation accuracy of each stage's selected epoch, as bars.

    Args:
        stages: One or more, each with a selected epoch that was judged.
    """
    chosen = [(place, stage.selected) for place, stage in enumerate(stages) if stage.selected]
    clean = [(place, epoch.validation_clean) for place, epoch in chosen]
    robust = [(place, epoch.validation_robust) for place, epoch in chosen]
    certified = [(place, epoch.validation_certified) for place, epoch in chosen]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for values, shift, colour, legend in (
            (clean, -0.19, BLUE, "clean"),
            (robust, 0.19, ORANGE, "attacked"),
            (certified, 0.19, GREEN, "certified"),
        ):
            known = [(place + shift, value) for place, value in values if value is not None]
            if not known:
                continue
            axes.bar([x for x, _ in known], [y for _, y in known], width=0.34, color=colour, label=legend)
            for x, y in known:
                axes.text(x, y + 0.015, f"{y:.1%}", ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(stages)), [printable(stage.name, limit=16) for stage in stages])
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-0.6, max(len(stages), 3) - 0.4)
        _accuracy_axis(axes, "validation accuracy")
        figure.legend(loc="outside upper left", ncols=2)

    told = [
        f"{stage.name}: clean {_percent(stage.selected.validation_clean)}, "
        + (
            f"attacked {_percent(stage.selected.validation_robust)}"
            if stage.selected.validation_certified is None
            else f"certified {_percent(stage.selected.validation_certified)}"
        )
        for stage in stages
        if stage.selected
    ]
    label = f"Validation accuracy by stage. {'; '.join(told)}."
    return render_svg(draw, size=(COLUMN, 3.7), name="accuracy-by-stage", label=label)


def training_curves(stages: Sequence[StageInfo]) -> Markup:
    """Draw accuracy and loss against the epoch, stage after stage.

    Args:
        stages: One or more, each with epochs.
    """

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        start = 0
        for stage in stages:
            _one_stage(upper, lower, stage, start)
            start += len(stage.epochs)
        lower.set_xlim(0.4, start + 0.6)
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        lower.set_xlabel("epoch, counted over all stages")
        lower.set_ylabel("training loss")
        lower.set_ylim(bottom=0)
        _accuracy_axis(upper, "validation accuracy")
        handles, labels = upper.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=3)

    epochs = sum(len(stage.epochs) for stage in stages)
    names = ", ".join(stage.name for stage in stages)
    label = f"Validation accuracy and training loss over {epochs} epochs of {names}."
    return render_svg(draw, size=(COLUMN, 3.7), name="training-curves", label=label)


def sparsity_by_layer(layers: Sequence[LayerInfo]) -> Markup:
    """Draw the fraction of each layer's weights that was removed, first layer on top.

    Args:
        layers: One or more.
    """
    removed = [1 - layer.kept / layer.size if layer.size else 0.0 for layer in layers]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(layers))
        axes.barh(places, [1.0] * len(layers), height=0.66, color=FAINT)
        axes.barh(places, removed, height=0.66, color=BLUE)
        for place, layer, fraction in zip(places, layers, removed, strict=True):
            note = f"{fraction:.1%}   {layer.kept:,} of {layer.size:,} kept"
            axes.text(1.02, place, note, va="center", fontsize=8.5)
        axes.set_yticks(places, [printable(layer.name, limit=24) for layer in layers])
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("sparsity (weights removed)")
        axes.grid(visible=False)

    told = ", ".join(f"{layer.name} {fraction:.1%}" for layer, fraction in zip(layers, removed, strict=True))
    size = (COLUMN, max(2.0, 0.9 + 0.27 * len(layers)))
    return render_svg(draw, size=size, name="sparsity-by-layer", label=f"Sparsity by layer: {told}.")


def magnitude_histograms(sites: Sequence[SiteHistogram]) -> Markup:
    """Draw how many kept and removed units have which magnitude, for the sites with most units.

    Args:
        sites: One or more; the :data:`LARGEST_SITES` largest are drawn, in the order given.
    """
    shown = largest_sites(sites)
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = -(-len(shown) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, site in zip(grid.flat, shown, strict=False):
            _histogram(axes, site)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("units")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)

    told = "; ".join(
        f"{site.name}: {sum(site.histogram.kept):,} kept, {sum(site.histogram.removed):,} removed"
        for site in shown
    )
    size = (COLUMN if columns == 1 else WIDE, 0.4 + 2.5 * rows)
    label = f"Histograms of kept and removed units by magnitude. {told}."
    return render_svg(draw, size=size, name="magnitudes", label=label)


def largest_sites(sites: Sequence[SiteHistogram]) -> list[SiteHistogram]:
    """Return the :data:`LARGEST_SITES` sites with most units, in the order given."""
    units = [sum(site.histogram.kept) + sum(site.histogram.removed) for site in sites]
    chosen = sorted(range(len(sites)), key=lambda place: -units[place])[:LARGEST_SITES]
    return [sites[place] for place in sorted(chosen)]


def accuracy_by_eps(curve: Curve, *, threat_eps: float | None) -> Markup:
    """Draw accuracy under attack against the radius, with its 95% interval.

    Args:
        curve: One point or more.
        threat_eps: Radius that the other numbers were measured at, marked if given.
    """
    points = sorted(curve.points, key=lambda point: point.eps)
    eps = [point.eps for point in points]
    accuracy = [point.accuracy for point in points]
    bounds = [wilson_interval(round(value * curve.count), curve.count) for value in accuracy]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.fill_between(
            eps, [low for low, _ in bounds], [high for _, high in bounds], color=ORANGE, alpha=0.18, lw=0,
            label="95% interval",
        )  # fmt: skip
        axes.plot(eps, accuracy, color=ORANGE, marker="s", markersize=4.5, label="accuracy", clip_on=False)
        if threat_eps is not None and 0 <= threat_eps <= max(eps):
            axes.axvline(threat_eps, color=INK, linestyle=(0, (4, 3)), linewidth=1, label="eps of the table")
        norm = "Linf" if curve.norm == "linf" else "L2"
        axes.set_xlabel(f"eps ({norm}, pixel scale 0 to 1)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        _accuracy_axis(axes, f"accuracy under {printable(curve.attack, limit=24)}")
        figure.legend(loc="outside upper left", ncols=3)

    told = ", ".join(f"{point.accuracy:.1%} at eps {point.eps:.4g}" for point in points)
    label = f"Accuracy under {curve.attack} against eps: {told}."
    return render_svg(draw, size=(COLUMN, 3.7), name="accuracy-by-eps", label=label)


def certified_by_radius(parts: Sequence[CertifiedInfo]) -> Markup:
    """Draw certified accuracy against the radius, a line for each certifier.

    Between two radii that were tested at least the larger one's accuracy is certified: the line steps down
    behind each.

    Args:
        parts: One or more, of one subject and one norm, each with a radius or more.
    """
    norm = "Linf" if parts[0].norm == "linf" else "L2"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for part, colour, marker in zip(
            parts, cycle((GREEN, BLUE, ORANGE, INK)), cycle("^osD"), strict=False
        ):
            points = sorted((item.radius, item.accuracy) for item in part.accuracies)
            axes.step(
                [radius for radius, _ in points], [accuracy for _, accuracy in points], where="pre",
                color=colour, marker=marker, markersize=4.5, label=part.certifier, clip_on=False,
            )  # fmt: skip
        axes.set_xlabel(f"radius ({norm}, pixel scale 0 to 1)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        _accuracy_axis(axes, "certified accuracy")
        figure.legend(loc="outside upper left", ncols=3)

    told = "; ".join(
        f"{part.certifier}: "
        + ", ".join(f"{item.accuracy:.1%} at radius {item.radius:.4g}" for item in part.accuracies)
        for part in parts
    )
    label = f"Certified accuracy against the {norm} radius. {told}."
    return render_svg(draw, size=(COLUMN, 3.7), name=f"certified-by-radius-{parts[0].norm}", label=label)


def sizes(artifact_bytes: int, dense_bytes: int, files: Sequence[FileInfo]) -> Markup:
    """Draw bytes before and after: the network and its artifact, then each file.

    Args:
        artifact_bytes: Of the artifact's tensors on disk.
        dense_bytes: Of the dense network in memory.
        files: Exported ones, with the size of the dense network, or else that which they would have dense.
    """
    pairs = [("artifact", dense_bytes, artifact_bytes)]
    pairs += [(f"{file.name} ({file.style})", file.before_bytes, file.size_bytes) for file in files]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        top = max(max(before, after) for _, before, after in pairs)
        for shift, part, colour, legend in ((-0.2, 1, GREY, "dense"), (0.2, 2, BLUE, "compressed")):
            values = [(pair[1], pair[2])[part - 1] for pair in pairs]
            places = [place + shift for place in range(len(pairs))]
            axes.barh(places, values, height=0.36, color=colour, label=legend)
            for y, value, pair in zip(places, values, pairs, strict=True):
                factor = f"   {pair[1] / pair[2]:.1f}x smaller" if part == 2 and pair[2] < pair[1] else ""
                axes.text(value + top * 0.012, y, f"{human_bytes(value)}{factor}", va="center", fontsize=9)
        axes.set_yticks(range(len(pairs)), [printable(name, limit=26) for name, _, _ in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlim(0, top * 1.16)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=2)

    told = "; ".join(f"{name}: {before:,} bytes dense, {after:,} compressed" for name, before, after in pairs)
    size = (COLUMN, max(2.0, 1.1 + 0.6 * len(pairs)))
    return render_svg(draw, size=size, name="sizes", label=f"Bytes before and after. {told}.")


def human_bytes(count: float) -> str:
    """Return a number of bytes in kB or MB, steps of 1,000, with three figures."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def _accuracy_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(label)


def _one_stage(upper: Axes, lower: Axes, stage: StageInfo, start: int) -> None:
    """Draw one stage's epochs to the right of ``start``, its name above."""
    marked = len(stage.epochs) <= 40
    x = [start + place + 1 for place in range(len(stage.epochs))]
    for values, colour, marker, legend in (
        ([epoch.validation_clean for epoch in stage.epochs], BLUE, "o", "clean"),
        ([epoch.validation_robust for epoch in stage.epochs], ORANGE, "s", "attacked"),
        ([epoch.validation_certified for epoch in stage.epochs], GREEN, "^", "certified"),
    ):
        known = [(place, value) for place, value in zip(x, values, strict=True) if value is not None]
        style = marker if marked or len(known) < 2 else ""
        if not known:
            continue
        upper.plot(
            [place for place, _ in known], [value for _, value in known],
            color=colour, marker=style, markersize=3.5, label=legend,
        )  # fmt: skip
        for place, epoch in zip(x, stage.epochs, strict=True):
            value = dict(known).get(place)
            if value is not None and stage.selected is not None and epoch.epoch == stage.selected.epoch:
                upper.plot(
                    place, value, color=INK, marker="o", markersize=8, fillstyle="none", linestyle="",
                    markeredgewidth=1.1, label="selected epoch",
                )  # fmt: skip
    losses = [epoch.loss for epoch in stage.epochs]
    lower.plot(x, losses, color=INK, marker="." if marked else "", markersize=5)
    for axes in (upper, lower):
        if start:
            axes.axvline(start + 0.5, color=GREY, linewidth=1)
    middle = start + (len(stage.epochs) + 1) / 2
    upper.text(middle, 0.985, printable(stage.name, limit=16), ha="center", va="top", fontsize=9)


def _histogram(axes: Axes, site: SiteHistogram) -> None:
    edges, kept, removed = site.histogram.edges, site.histogram.kept, site.histogram.removed
    highest = max(*kept, *removed, 1)
    logarithmic = highest >= 100
    floor = 0.7 if logarithmic else 0.0
    for counts, colour, legend in ((removed, GREY, "removed"), (kept, BLUE, "kept")):
        heights = [max(count, floor) for count in counts]
        axes.stairs(heights, edges, baseline=floor, fill=True, color=colour, alpha=0.75, label=legend)
        axes.stairs(heights, edges, baseline=floor, color=colour, linewidth=1)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(floor, highest * (2 if logarithmic else 1.1))
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_title(printable(site.name))
    axes.set_xlabel("magnitude")


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"
