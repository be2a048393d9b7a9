"""The card beside exported files: how they were made, how they were attacked, what they are not for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from robustcompress.report.model import FileInfo
from robustcompress.robustness.measurement import Access, Count
from robustcompress.robustness.threat import Threat

_MOST_CLASSES = 100
_SHA256_OF_NOTHING = "unknown"

_RUN = """\
import numpy, onnxruntime
session = onnxruntime.InferenceSession("{name}")
images = numpy.zeros([8, {sizes}], numpy.float32)  # pixels in [{lower:g}, {upper:g}]
(logits,) = session.run(None, {{"images": images}})  # [8, {classes}]"""


@dataclass(frozen=True)
class Making:
    """How files were made.

    Attributes:
        recipe: Every setting, as plain data.
        data: Name of the data set; empty for a user's own.
        data_fingerprint: Hash of the training data.
        versions: By package, when the network was made.
        weights: Of convolutions and linear layers in the dense network; 0 where that is not known.
        kept_weights: Of those, not zero now.
        image_shape: Of one image, ``(channels, height, width)``.
        classes: How many logits there are.
        class_names: In the order of the logits; may be empty.
    """

    recipe: Mapping[str, Any]
    data: str
    data_fingerprint: str
    versions: Mapping[str, str]
    weights: int
    kept_weights: int
    image_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttackRow:
    """What one attack left of a file's accuracy.

    Attributes:
        attack: As it prints itself, ``clean`` or ``worst case``.
        access: What it could see.
        settings: Its settings as text; may be empty.
        result: Images right, of those judged.
    """

    attack: str
    access: Access
    settings: str
    result: Count


@dataclass(frozen=True)
class Attacked:
    """How one file was judged.

    Attributes:
        threat: What attacks could do.
        judged_on: ``test`` or ``validation``.
        data: Whose images; empty for a user's own.
        images_sha256: Of the images and labels.
        seed: Of every random number.
        device: Where gradients were computed.
        versions: By package, when it was judged.
        rows: Clean, and each attack that is claimed; none but clean where alarms said that the rest is not
            to be believed.
    """

    threat: Threat
    judged_on: str
    data: str
    images_sha256: str
    seed: int
    device: str
    versions: Mapping[str, str]
    rows: tuple[AttackRow, ...]


def model_card(making: Making, files: Sequence[FileInfo], attacked: Mapping[str, Attacked]) -> str:
    """Return the card as Markdown; the same facts give the same text.

    Args:
        making: How the files were made.
        files: All that lie beside the card.
        attacked: By file name, how each was judged, of those that were.
    """
    title = _plain(str(making.recipe.get("name") or "robust network"))
    parts = [
        f"# Model card: {title}",
        "",
        "A compressed image classifier, made and attacked by robustcompress. All that is said here holds for "
        "the files with these SHA-256 sums, and for no others.",
        "",
        *_files(files),
        *_made(making),
        *_attacks(files, attacked),
        *_loading(making, files),
        *_limits(making, files, attacked),
        "## Recipe",
        "",
        *(f"    {line}" for line in _yaml(making.recipe).splitlines()),
    ]
    return "\n".join(parts) + "\n"


def _files(files: Sequence[FileInfo]) -> Iterator[str]:
    yield from ("## Files", "", "| file | format | bytes | dense network | smaller | SHA-256 |")
    yield "|---|---|---:|---:|---:|---|"
    for file in files:
        smaller = f"{file.before_bytes / file.size_bytes:.1f} times" if file.size_bytes else ""
        yield (
            f"| {_cell(file.name)} | {file.format}, {file.style} | {file.size_bytes:,} | "
            f"{file.before_bytes:,} | {smaller} | `{file.sha256}` |"
        )
    yield ""
    yield (
        "Dense network: its parameters in float32, before anything was removed. Each file was read back "
        "before it was kept and gave the network's logits:"
    )
    yield ""
    for file in files:
        details = ", ".join(f"{_plain(name)} {_plain(value)}" for name, value in sorted(file.details.items()))
        yield (
            f"- {_plain(file.name)}: on {file.images_compared} images, to {file.largest_difference:.2g} of "
            f"the largest logit{f' ({details})' if details else ''}"
        )
    yield ""


def _made(making: Making) -> Iterator[str]:
    recipe = making.recipe
    yield from ("## How it was made", "")
    if making.weights:
        removed = 1 - making.kept_weights / making.weights
        yield (
            f"- {removed:.2%} of {making.weights:,} weights of convolutions and linear layers are gone, "
            f"{making.kept_weights:,} are left (pattern {_kind(recipe.get('pattern'))}, score "
            f"{_kind(recipe.get('score'))}, budget {_kind(recipe.get('budget'))})"
        )
    yield f"- network: {_kind(recipe.get('model'), usual='given in Python')}"
    yield f"- trained against {_threat_text(recipe.get('threat'))} with {_kind(recipe.get('objective'))}"
    for stage in ("pretrain", "prune", "finetune"):
        settings = recipe.get(stage)
        if stage in (recipe.get("stages") or ()) and isinstance(settings, Mapping):
            yield f"- {stage}: {settings.get('epochs')} epochs at rate {settings.get('lr')}"
    fingerprint = making.data_fingerprint or _SHA256_OF_NOTHING
    yield f"- data: {making.data or 'given in Python'}, training images `{_plain(fingerprint)}`"
    yield f"- seed {recipe.get('seed', 0)}; {_versions(making.versions)}"
    yield ""


def _attacks(files: Sequence[FileInfo], attacked: Mapping[str, Attacked]) -> Iterator[str]:
    yield from ("## How it was attacked", "")
    for file in files:
        judged = attacked.get(file.name)
        yield from (f"### {_plain(file.name)}", "")
        if judged is None:
            yield (
                "This file was not attacked: nothing is known of its robustness. `robustcompress evaluate` "
                "on the run measures it, for formats that can be run here, and writes it here."
            )
            yield ""
            continue
        norm = "Linf" if judged.threat.norm == "linf" else "L2"
        count = judged.rows[0].result.count if judged.rows else 0
        yield (
            f"{norm} eps {judged.threat.eps:.6g} on pixels in [{judged.threat.lower:g}, "
            f"{judged.threat.upper:g}]; {count} {judged.judged_on} images of "
            f"{judged.data or 'data given in Python'} (`{judged.images_sha256}`), seed {judged.seed}, "
            f"gradients on {judged.device}; {_versions(judged.versions)}. Every number is what this very "
            "file says in its runtime."
        )
        yield from ("", "| attack | access | settings | right | accuracy | 95% interval |")
        yield "|---|---|---|---:|---:|---:|"
        for row in judged.rows:
            low, high = row.result.interval
            yield (
                f"| {_cell(row.attack)} | {'' if row.access == 'none' else row.access} | "
                f"{_cell(row.settings)} | {row.result.correct} of {row.result.count} | "
                f"{row.result.accuracy:.1%} | {low:.1%} to {high:.1%} |"
            )
        yield ""
        if not any(row.attack != "clean" for row in judged.rows):
            yield (
                "No robust accuracy is claimed: no attack was asked for, or signs of gradient masking were "
                "found."
            )
            yield ""


def _loading(making: Making, files: Sequence[FileInfo]) -> Iterator[str]:
    lower, upper = _pixels(making.recipe)
    shape = ", ".join(str(size) for size in making.image_shape)
    yield from ("## How to load it", "")
    yield (
        f"Input: float32 images [batch, {shape}] with pixels in [{lower:g}, {upper:g}]. Normalisation, if "
        "the "
        f"network has any, is inside: give pixels as they are. Output: logits [batch, {making.classes}], not "
        "probabilities; the largest one is the class."
    )
    yield ""
    runnable = next((file for file in files if file.name.endswith(".onnx")), None)
    if runnable is not None:
        text = _RUN.format(
            name=_plain(runnable.name), sizes=shape, lower=lower, upper=upper, classes=making.classes
        )
        yield from (f"    {line}" for line in text.splitlines())
        yield ""
    if any(file.name.endswith(".safetensors") for file in files):
        yield (
            "A .safetensors file holds weights and no graph; its metadata and robustcompress's "
            "docs/format.md say how to read it."
        )
        yield ""
    if 0 < len(making.class_names) <= _MOST_CLASSES:
        names = ", ".join(f"{place} {_plain(name)}" for place, name in enumerate(making.class_names))
        yield from (f"Classes: {names}.", "")


def _limits(making: Making, files: Sequence[FileInfo], attacked: Mapping[str, Attacked]) -> Iterator[str]:
    yield from ("## What it is not for", "")
    yield (
        f"- Other perturbations: {_threat_text(making.recipe.get('threat'))} is all that it was trained to "
        "withstand. Larger ones, other norms, patches, blur, weather, rotations and physical attacks were "
        "not looked at."
    )
    yield (
        "- A guarantee: attacks show how accuracy falls, not that no stronger attack exists. Adaptive "
        "attacks may do better."
    )
    yield (
        f"- Other images: {making.data or 'its training data'} is what it knows. It gives a class to "
        "anything, and says nothing about images of no class."
    )
    yield (
        "- Decisions on people's safety, health, rights or access without an evaluation of one's own for "
        "that use."
    )
    changed = [_plain(file.name) for file in files if "rounding_moved_logits" in file.details]
    if changed:
        yield (
            f"- Conclusions from one file to another: {', '.join(changed)} rounds values, so that its "
            "robustness is its own."
        )
    if any(file.name not in attacked for file in files):
        yield "- Claims of robustness for files that were not attacked, see above."
    yield (
        "- Changed copies: a file that is quantised, densified or converted is another file. Attack it again."
    )
    yield ""


def _kind(value: object, *, usual: str = "unknown") -> str:
    if isinstance(value, Mapping):
        return _plain(str(value.get("kind") or value.get("factory") or usual))
    return _plain(str(value)) if value else usual


def _threat_text(threat: object) -> str:
    if not isinstance(threat, Mapping) or "eps" not in threat:
        return "no known threat"
    return f"{'L2' if threat.get('norm') == 'l2' else 'Linf'} eps {float(threat['eps']):.6g}"


def _pixels(recipe: Mapping[str, Any]) -> tuple[float, float]:
    threat = recipe.get("threat")
    found = threat if isinstance(threat, Mapping) else {}
    return float(found.get("lower", 0.0)), float(found.get("upper", 1.0))


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{_plain(name)} {_plain(text)}" for name, text in sorted(versions.items()))


def _plain(text: str) -> str:
    """Return ``text`` on one line, without what would end a code span."""
    return " ".join(text.split()).replace("`", "'")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=True, allow_unicode=True)
