"""Attack the network and every exported file, and write the report."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from robustcompress.events import Progress
from robustcompress.export.claims import bare_sha256
from robustcompress.export.formats import Exported
from robustcompress.pipeline import report_parts
from robustcompress.pipeline.attack_store import AttackStore
from robustcompress.pipeline.carding import write_card
from robustcompress.pipeline.certified_evaluation import certify_all, fingerprint_of
from robustcompress.pipeline.claims import record_claims
from robustcompress.pipeline.context import Context, versions
from robustcompress.pipeline.file_targets import file_targets, with_quick
from robustcompress.pipeline.interrupts import check_stop
from robustcompress.report.judgement import class_rows
from robustcompress.report.model import (
    Agreement,
    ClassInfo,
    Curve,
    CurvePoint,
    Report,
)
from robustcompress.robustness.alarms.reliability import Reliability, check_reliability
from robustcompress.robustness.batches import checked_batches
from robustcompress.robustness.curve import eps_curve
from robustcompress.robustness.evaluation import Evaluation
from robustcompress.robustness.evaluation import evaluate as measure
from robustcompress.robustness.predictor import as_predictor
from robustcompress.robustness.target import Target
from robustcompress.seeding import derive_seed
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.atomic import write_bytes
from robustcompress.training.loop import float32_math

NO_TEST = (
    "No test data were given: the result was judged on the validation images that selected the epochs, "
    "which flatters it."
)


def evaluate(
    context: Context, before: Artifact, files: Sequence[Exported], stages: Mapping[str, Artifact]
) -> Report:
    """Judge the network, and each file, and write ``report/report.json`` and ``report/report.html``.

    Raises:
        InterruptedRunError: If the run was asked to stop; nothing is written then.
    """
    # Pictures need matplotlib, a second's import that no other command should wait for.
    from robustcompress.report.page import render_page

    if context.test is None:
        context.warn(NO_TEST)
    network = context.network_of(before).to(context.device)
    with float32_math("fp32"):
        targets = file_targets(context, files)
        store = _store(context, before, files)
        found = _measure(context, network, targets, files, store)
        reliability = _reliability(context, network, targets, found)
        curve = _curve(context, network)
        certified = certify_all(context, network, files, before, found)
        agreement = _agreement(context, network, stages)
    # What is not to be believed is not claimed.
    doubted = {name for name, checks in reliability.items() if checks.status == "unreliable"}
    believed = [row for row in found.measurements if row.attack == "clean" or row.subject not in doubted]
    files = record_claims(context, files, believed)
    report = Report(
        run=report_parts.run_info(context, stages),
        network=report_parts.network_info(context, network.cpu()),
        stages=tuple(
            report_parts.stage_info(name, artifact) for name, artifact in stages.items() if name != "compact"
        ),
        layers=report_parts.layers(context, network),
        histograms=report_parts.histograms(stages.get("prune")),
        measurements=found.measurements,
        files=tuple(report_parts.file_info(item) for item in files),
        artifact_bytes=report_parts.artifact_bytes(context, before),
        dense_bytes=sum(t.numel() * t.element_size() for t in context.model.state_dict().values()),
        curve=curve,
        certified=certified,
        reliability=reliability,
        classes=tuple(_classes(context, found)),
        agreement=agreement,
        examples=tuple(report_parts.example(context, item) for item in found.examples),
    )
    folder = context.run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "report.json", report.model_dump_json(indent=1).encode())
    write_bytes(folder / "report.html", render_page(report).encode())
    if files:
        write_card(context, before, files)
    store.clear()
    return report


def _bare(file: Exported) -> str:
    """Return what tells a file from others: for one that claims are written into, all but those."""
    return bare_sha256(file.path) if file.path.suffix == ".onnx" else file.sha256


def _store(context: Context, before: Artifact, files: Sequence[Exported]) -> AttackStore:
    """Return where an evaluation that is stopped leaves what was made so far."""
    settings = context.recipe.evaluation
    identity = {
        "network": fingerprint_of(before.tensors),
        "files": {item.path.name: _bare(item) for item in files},
        "settings": settings.model_dump(mode="json", include={"attacks", "batch_size", "limit"}),
        "threat": context.recipe.evaluation_threat.model_dump(mode="json"),
        "seed": context.recipe.seed,
        "device": str(context.device),
        "data": context.fingerprint,
        "versions": versions(),
    }
    return AttackStore(context.run_dir / "attacks", identity)


def _measure(
    context: Context,
    network: nn.Module,
    targets: Mapping[str, Target],
    files: Sequence[Exported],
    store: AttackStore,
) -> Evaluation:
    settings = context.recipe.evaluation

    def progress(task: str, done: int, total: int, note: str) -> None:
        check_stop(context.stop, "evaluate")
        context.events(Progress("evaluate", task, done, total, note))

    found = measure(
        with_quick(network, targets, files, context.device),
        context.judged,
        threat=context.recipe.evaluation_threat,
        attacks=settings.attacks,
        seed=context.recipe.seed,
        device=context.device,
        files=targets,
        progress=progress,
        keep_examples=settings.examples,
        limit=settings.limit,
        store=store,
    )
    for skipped in found.skipped:
        context.warn(f"{skipped}. Its robust accuracy is that of the attacks that were.")
    return found


def _reliability(
    context: Context, network: nn.Module, targets: Mapping[str, Target], found: Evaluation
) -> dict[str, Reliability]:
    """Return whether the robust accuracy of each subject may be believed."""
    settings = context.recipe.evaluation
    if not settings.alarms or not settings.attacks:
        return {}
    judged: dict[str, nn.Module | Target] = {"network": network}
    judged.update({name: target for name, target in targets.items() if target.twin is not None})
    made: dict[str, Reliability] = {}
    for name, target in judged.items():

        def progress(task: str, done: int, total: int, name: str = name) -> None:
            check_stop(context.stop, "evaluate")
            context.events(Progress("evaluate", f"{task}, {name}", done, total))

        made[name] = check_reliability(
            target,
            context.judged,
            threat=context.recipe.evaluation_threat,
            seed=derive_seed(context.recipe.seed, "alarms"),
            device=context.device,
            outcomes=found.outcomes[name],
            limit=min(settings.alarm_limit, settings.limit or settings.alarm_limit),
            progress=progress,
        )
        if made[name].status == "unreliable":
            context.warn(f"{name}: {made[name]}")
    return made


def _classes(context: Context, found: Evaluation) -> Iterator[ClassInfo]:
    names = context.classes or tuple(str(label) for label in range(int(found.labels.max()) + 1))
    return class_rows(found, names)


def _agreement(context: Context, network: nn.Module, stages: Mapping[str, Artifact]) -> Agreement | None:
    """Return how often the network and the dense one that it came from say the same class."""
    if "pretrain" not in stages:
        return None
    dense = context.network_of(stages["pretrain"]).to(context.device)
    same = count = 0
    with as_predictor(network, context.device) as ours, as_predictor(dense, context.device) as theirs:
        for batch in checked_batches(
            context.judged, device=context.device, limit=context.recipe.evaluation.limit
        ):
            with torch.no_grad():
                same += int((ours(batch.images).argmax(1) == theirs(batch.images).argmax(1)).sum())
            count += len(batch.labels)
    return Agreement(same=same, count=count)


def _curve(context: Context, network: nn.Module) -> Curve | None:
    settings, threat = context.recipe.evaluation, context.recipe.evaluation_threat
    if not settings.curve or not settings.attacks:
        return None
    attack = settings.attacks[0]
    radii = [0.0, *(factor * threat.eps for factor in settings.curve)]
    limit = min(settings.curve_limit, settings.limit or settings.curve_limit)
    with as_predictor(network, context.device) as predictor:
        found = eps_curve(
            predictor,
            context.judged,
            radii,
            threat=threat,
            attack=attack,
            seed=context.recipe.seed,
            device=context.device,
            limit=limit,
        )
    points = tuple(CurvePoint(eps=eps, accuracy=accuracy) for eps, accuracy in found)
    return Curve(attack=str(attack), norm=threat.norm, count=limit, points=points)
