"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from robustcompress.report import charts
from robustcompress.report.model import FileInfo, Report
from robustcompress.report.perturbation import magnified
from robustcompress.robustness.measurement import Measurement

_IN_COLUMNS = frozenset({"kind", "steps", "restarts", "step_size", "attacks"})


@dataclass(frozen=True)
class Picture:
    """One picture of the page, or why it is missing.

    Attributes:
        title: Heading.
        svg: The drawing; ``None`` where there are no data.
        text: Caption, or the sentence that stands in for the picture.
        wide: Takes both columns.
    """

    title: str
    svg: Markup | None
    text: str
    wide: bool = False


@dataclass(frozen=True)
class Attacked:
    """The headline's robust accuracy: the lowest that was measured, and every attack behind it."""

    worst: Measurement
    attacks: tuple[Measurement, ...]


def render_page(report: Report) -> str:
    """Return the report as a self-contained HTML page; the same report gives the same bytes.

    Raises:
        StorageError: If a picture of an example cannot be read.
    """
    file = _headline_file(report)
    subject = _headline_subject(report, file)
    factor, perturbations = magnified(report.examples)
    attacked = next((row for row in report.measurements if row.eps is not None), None)
    return _template().render(
        report=report,
        file=file,
        before=file.before_bytes if file else report.dense_bytes,
        after=file.size_bytes if file else report.artifact_bytes,
        subject=subject,
        clean=report.measured(subject, "clean") if subject else None,
        robust=_attacked(report, subject) if subject else None,
        pictures=_pictures(report, attacked.eps if attacked else None),
        examples=list(zip(report.examples, perturbations, strict=True)),
        magnification=factor,
        recipe=yaml.safe_dump(report.run.recipe, sort_keys=False, allow_unicode=True),
        bytes=charts.human_bytes,
        duration=_duration,
        eps=_eps,
        norm=_norm,
        other_settings=_other_settings,
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("robustcompress.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def _headline_file(report: Report) -> FileInfo | None:
    """Return the smallest file that was attacked; failing that the smallest."""
    judged = {row.subject for row in report.measurements}
    return min(report.files, key=lambda file: (file.name not in judged, file.size_bytes), default=None)


def _headline_subject(report: Report, file: FileInfo | None) -> str | None:
    subjects = [row.subject for row in report.measurements]
    if file and file.name in subjects:
        return file.name
    return subjects[0] if subjects else None


def _attacked(report: Report, subject: str) -> Attacked | None:
    rows = [row for row in report.measurements if row.subject == subject and row.access != "none"]
    if not rows:
        return None
    # On equal counts, the worst case over all attacks says more than one attack.
    worst = min(rows, key=lambda row: (row.accuracy, row.attack != "worst case"))
    single = tuple(row for row in rows if row.attack != "worst case")
    return Attacked(worst, single if worst.attack == "worst case" else (worst,))


def _pictures(report: Report, threat_eps: float | None) -> Sequence[Picture]:
    return (
        _stage_picture(report),
        _training_picture(report),
        _curve_picture(report, threat_eps),
        *_certified_pictures(report),
        _size_picture(report),
        _sparsity_picture(report),
        _magnitude_picture(report),
    )


def _stage_picture(report: Report) -> Picture:
    title = "Accuracy by stage"
    stages = [
        stage
        for stage in report.stages
        if stage.selected
        and (stage.selected.validation_clean is not None or stage.selected.validation_robust is not None)
    ]
    if not stages:
        return Picture(title, None, "No training stage of this run was judged on validation images.")
    text = (
        "Accuracy in percent of the validation images, clean and attacked (or certified), with the "
        f"weights of the epoch that each stage handed on.{_validation_attack(report)} These images selected "
        "the epochs, so the numbers flatter; the table below counts."
    )
    return Picture(title, charts.accuracy_by_stage(stages), text)


def _training_picture(report: Report) -> Picture:
    title = "Training"
    stages = [stage for stage in report.stages if stage.epochs]
    if not stages:
        return Picture(title, None, "This run holds no record of training epochs.")
    text = (
        "Above: accuracy on the validation images after each epoch. Below: mean training loss of the epoch, "
        "which compares within a stage only. Circles mark the epoch whose weights went on."
    )
    return Picture(title, charts.training_curves(stages), text)


def _curve_picture(report: Report, threat_eps: float | None) -> Picture:
    title = "Robust accuracy against eps"
    curve = report.curve
    if curve is None or not curve.points:
        return Picture(title, None, "Robust accuracy was not measured over several radii.")
    text = (
        f"The network (white-box) under {curve.attack} on {curve.count:,} {report.run.judged_on} images, "
        f"{_norm(curve.norm)} radii on the pixel scale 0 to 1; at 0 it is the clean accuracy. "
        "Shaded: 95% interval (Wilson)."
    )
    return Picture(title, charts.accuracy_by_eps(curve, threat_eps=threat_eps), text)


def _certified_pictures(report: Report) -> Sequence[Picture]:
    """Return a picture for each norm in which the headline's subject was certified."""
    file = _headline_file(report)
    subject = file.name if file and any(part.subject == file.name for part in report.certified) else "network"
    made: list[Picture] = []
    for norm in ("linf", "l2"):
        parts = [part for part in report.certified if (part.subject, part.norm) == (subject, norm)]
        if parts:
            count = parts[0].accuracies[0].count
            text = (
                f"{subject} on {count:,} {report.run.judged_on} images, {_norm(norm)} radii on the pixel "
                "scale 0 to 1: the fraction of images whose right class no change within the radius alters."
            )
            if any(part.smoothed for part in parts):
                text += " Randomized smoothing certifies the class given most often under noise."
            picture = charts.certified_by_radius(parts)
            made.append(Picture(f"Certified accuracy against the {_norm(norm)} radius", picture, text))
    return made


def _size_picture(report: Report) -> Picture:
    text = (
        "Bytes (1 kB = 1,000) before and after. Artifact: parameters and buffers of the dense network in "
        "memory against the sparse tensors on disk."
    )
    if report.files:
        text += " Exported files: the same export written dense against the file on disk."
    svg = charts.sizes(report.artifact_bytes, report.dense_bytes, report.files)
    return Picture("Bytes before and after", svg, text)


def _sparsity_picture(report: Report) -> Picture:
    title = "Sparsity by layer"
    if not report.layers:
        return Picture(title, None, "This run holds no record of its layers.")
    text = (
        "Fraction of each layer's weights (biases and normalisation not counted) that is gone or zero, in "
        "percent of the dense layer's."
    )
    return Picture(title, charts.sparsity_by_layer(report.layers), text, wide=len(report.layers) > 12)


def _magnitude_picture(report: Report) -> Picture:
    title = "Kept and removed weights by magnitude"
    if not report.histograms:
        return Picture(title, None, "No weights were removed in this run, so there is no histogram of them.")
    shown = len(charts.largest_sites(report.histograms))
    channels = report.run.recipe.get("pattern") == {"kind": "channel"}
    unit = "channels by the norm of their weights" if channels else "weights by absolute value"
    text = (
        f"Number of kept and removed {unit}, before finetuning. Bars overlap; the vertical scale is "
        "logarithmic where counts reach 100."
    )
    if shown < len(report.histograms):
        text += f" The {shown} largest of {len(report.histograms)} sites; all are in report.json."
    return Picture(title, charts.magnitude_histograms(report.histograms), text, wide=shown > 1)


def _validation_attack(report: Report) -> str:
    """Return a sentence on the attack behind the validation accuracies, if the recipe names it."""
    validation, threat = report.run.recipe.get("validation"), report.run.recipe.get("threat")
    attack = validation.get("attack") if isinstance(validation, dict) else None
    if not isinstance(attack, dict) or not isinstance(threat, dict):
        return ""
    parts = [str(attack.get("kind", "attack")).upper()]
    parts += [f"{attack[key]} {key}" for key in ("steps", "restarts") if key in attack]
    if isinstance(threat.get("eps"), float):
        parts.append(f"{_norm(str(threat.get('norm')))} eps {_eps(threat['eps'])}")
    return f" Attack: {', '.join(parts)}."


def _other_settings(row: Measurement) -> str:
    """Return what defines an attack beside what has a column of its own."""
    if "attacks" in row.settings:
        return f"right under each of {row.settings['attacks']}"
    rest = {name: value for name, value in row.settings.items() if name not in _IN_COLUMNS}
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in rest.items())


def _value(value: str | float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _eps(eps: float) -> str:
    """Return a radius as people write it: 0.1, but 8/255."""
    short = f"{eps:.6g}"
    levels = eps * 255
    if len(short) > 5 and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return short


def _norm(norm: str) -> str:
    return {"linf": "Linf", "l2": "L2"}.get(norm, norm)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
