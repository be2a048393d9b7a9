"""Attack a network, or any ONNX file, on the test images of a data set."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.data import ImageFiles, ImageSet
from robustcompress.errors import ConfigError, ModelError
from robustcompress.events import Events, Progress, Sink
from robustcompress.pipeline.attack_store import AttackStore
from robustcompress.pipeline.certified_evaluation import fingerprint_of
from robustcompress.pipeline.context import resolve_device, versions
from robustcompress.pipeline.onnx_target import onnx_target
from robustcompress.recipe import EvaluationSettings
from robustcompress.report.judgement import Judgement, TwinInfo, class_rows
from robustcompress.robustness.alarms.reliability import Reliability, check_reliability
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.batches import Batches
from robustcompress.robustness.evaluation import Evaluation, evaluate
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import derive_seed
from robustcompress.training.loop import float32_math
from robustcompress.training.sources import as_source
from robustcompress.zoo.datasets import DataSet

_EXAMPLES = 16
_SOURCE = "network of the images"
_USUAL = EvaluationSettings()

T = TypeVar("T")


def evaluate_data_set(
    target: nn.Module | Predictor | Target | str | Path,
    data: DataSet | ImageSet | str | Mapping[str, object],
    *,
    threat: Threat | Mapping[str, object],
    attacks: Sequence[Attack | str | Mapping[str, object]],
    subject: str | None = None,
    limit: int | None = None,
    batch_size: int = _USUAL.batch_size,
    seed: int = 0,
    device: str = "auto",
    transfer_from: nn.Module | None = None,
    alarms: bool = True,
    fingerprint: str = "",
    keep: Path | None = None,
    sinks: Sequence[Sink] = (),
) -> Judgement:
    """Measure accuracy on the test images of a data set, clean and under attack, in float32 precision.

    Every number is what ``target`` itself says. Attacks that need gradients follow those of a module, or
    those of a file's own graph, once that is proven to compute what the runtime does. Where a graph is not
    understood, black-box attacks are all there is; a warning and the result say so.

    Args:
        target: An ONNX file, whoever made it; a module that maps images in [0, 1] to logits; any predictor;
            or a predictor with its twin.
        data: A data set, its name, or its settings; or images in memory.
        threat: What attacks may do, or its settings: ``{"norm": "linf", "eps": "8/255"}``.
        attacks: Each an attack, its name, or its settings.
        subject: The target's name in the result; by default the file's, or ``network``.
        limit: Judge the first ``limit`` images only.
        batch_size: Images judged at once.
        seed: Of every random number.
        device: Where gradients are computed: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        transfer_from: Score the images that attacks make on this network, too: another way to break a file,
            and the only one with gradients where its graph is not understood.
        alarms: Look for signs that the robust accuracy is not to be believed; see
            :func:`~robustcompress.robustness.alarms.reliability.check_reliability`.
        fingerprint: Tells this target from others. Needed with ``keep`` where it is neither file nor module.
        keep: A folder that gets the images which the members of ensembles make, as soon as they are made:
            what it holds of the same evaluation is not made again. It is emptied in the end.
        sinks: Receivers of progress events and warnings.

    Raises:
        ConfigError: If a setting is wrong or no attack can be run.
        DataError: If the images are missing or do not fit the target.
        ModelError: If a logit is not finite, the network cannot be called with the images, or an attack finds
            no gradient to follow.
        StorageError: If a file cannot be read.
        ExportError: If ONNX Runtime cannot load or run it.
    """
    chosen = tuple(_found(Attack.find, item, "attack") for item in attacks)
    asked = _found(Threat.model_validate, threat, "threat")
    place = resolve_device(device)
    images = _images(data)
    source = as_source(images, batch_size=batch_size, seed=seed, device=place, name="test")
    first = next(iter(source.in_order()))[0]
    events = Events(sinks)
    twin: TwinInfo | None = None
    if isinstance(target, str | Path):
        path = Path(target)
        judged, read = onnx_target(path, first[:_EXAMPLES].cpu())
        twin = TwinInfo.model_validate(read, from_attributes=True) if read is not None else None
        subject, fingerprint = subject or path.name, fingerprint or _sha256(path)
    else:
        judged = _as_target(target)
        fingerprint = fingerprint or _fingerprint(judged)
    name = subject or "network"
    if judged.twin is None:
        events.warning(f"{name} is attacked without gradients: {judged.reason}")
    network = target if isinstance(target, nn.Module) else judged
    for module in (target, transfer_from):
        if isinstance(module, nn.Module):
            _check_callable(module, first[:1])
    made_on = _fingerprint(Target(transfer_from, transfer_from)) if transfer_from is not None else ""
    identity = {
        "target": fingerprint,
        "transfer from": made_on,
        "attacks": [attack.model_dump(mode="json") for attack in chosen],
        "threat": asked.model_dump(mode="json"),
        "images": images.fingerprint(),
        "limit": limit,
        "batch size": batch_size,
        "seed": seed,
        "device": str(place),
        "versions": versions(),
    }
    store = _store(keep, identity)

    batches = -(-min(limit or len(images), len(images)) // batch_size)

    def progress(task: str, done: int, total: int, note: str = "") -> None:
        events(Progress("evaluate", task, done, total or batches, note))

    with float32_math("fp32"):
        found = evaluate(
            network if transfer_from is None else transfer_from,
            source.in_order(),
            threat=asked,
            attacks=chosen,
            seed=seed,
            device=place,
            subject=name if transfer_from is None else _SOURCE,
            files=None if transfer_from is None else {name: judged},
            progress=progress,
            keep_examples=0,
            limit=limit,
            store=store,
        )
        reliability = (
            _reliability(judged, source.in_order(), found, name, asked, seed, place, limit, progress)
            if alarms and chosen
            else None
        )
    if store is not None:
        store.clear()
    classes = images.classes or tuple(str(label) for label in range(int(found.labels.max()) + 1))
    return Judgement(
        subject=name,
        fingerprint=fingerprint,
        data=images.name,
        images=images.fingerprint(),
        norm=asked.norm,
        eps=asked.eps,
        seed=seed,
        batch_size=batch_size,
        device=place.type,
        versions=versions(),
        measurements=tuple(row for row in found.measurements if row.subject == name),
        classes=tuple(row for row in class_rows(found, classes) if row.subject == name),
        reliability=reliability,
        skipped=found.skipped,
        no_gradients=judged.reason if judged.twin is None else "",
        twin=twin,
        transfer_from=made_on,
    )


def _reliability(
    judged: Target,
    batches: Batches,
    found: Evaluation,
    name: str,
    threat: Threat,
    seed: int,
    device: torch.device,
    limit: int | None,
    progress: Callable[[str, int, int], None],
) -> Reliability:
    return check_reliability(
        judged,
        batches,
        threat=threat,
        seed=derive_seed(seed, "alarms"),
        device=device,
        outcomes=found.outcomes[name],
        limit=min(_USUAL.alarm_limit, limit or _USUAL.alarm_limit),
        progress=progress,
    )


def _as_target(target: nn.Module | Predictor | Target) -> Target:
    if isinstance(target, Target):
        return target
    if isinstance(target, nn.Module):
        return Target(target, target)
    return Target(target, None, "it is a function without a twin")


def _images(data: DataSet | ImageSet | str | Mapping[str, object]) -> ImageSet | ImageFiles:
    if isinstance(data, ImageSet):
        return data
    return _found(DataSet.find, data, "data").open("test")


def _found(find: Callable[[object], T], value: object, what: str) -> T:
    """Return what ``find`` makes of settings.

    Raises:
        ConfigError: If they are refused; says which, why, and what came.
    """
    try:
        return find(dict(value) if isinstance(value, Mapping) else value)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join([what, *(str(part) for part in problem["loc"])])
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{place}: {message}; got {problem['input']!r}.") from error
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def _check_callable(network: nn.Module, image: Tensor) -> None:
    """Check that a network takes such images at all; what it returns is checked where it is judged.

    Raises:
        ModelError: If it does not.
    """
    device = next((tensor.device for tensor in network.state_dict().values()), image.device)
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with torch.no_grad():
            network(image.to(device))
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(
            f"the network cannot be called with images {[1, *image.shape[1:]]}: {type(error).__name__}: "
            f"{error}. Give the data set, or the image size, for which it was made."
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def _store(keep: Path | None, identity: Mapping[str, object]) -> AttackStore | None:
    if keep is None:
        return None
    if not identity["target"]:
        raise ConfigError(
            "keep needs a fingerprint that tells this predictor from others, such as the hash of its file."
        )
    return AttackStore(keep, identity)


def _fingerprint(target: Target) -> str:
    """Return what tells a module from others; empty for what is none."""
    network = target.predictor
    if not isinstance(network, nn.Module):
        return ""
    text = f"{network!r} {fingerprint_of(network.state_dict())}"
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
