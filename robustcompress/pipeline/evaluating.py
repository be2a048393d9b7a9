"""Attack the network and every exported file, and write the report."""

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import torch
from torch import nn

from robustcompress.events import Progress
from robustcompress.export.formats import Exported
from robustcompress.export.session import OnnxSession
from robustcompress.graph.cost import count_macs, effective_macs
from robustcompress.pipeline.certified_evaluation import certify_all
from robustcompress.pipeline.compacting import weight_counts
from robustcompress.pipeline.context import Context, versions
from robustcompress.pipeline.interrupts import check_stop
from robustcompress.report.model import (
    Curve,
    CurvePoint,
    EpochInfo,
    ExampleInfo,
    FileInfo,
    FrozenPart,
    LayerInfo,
    NetworkInfo,
    Report,
    RunInfo,
    SiteHistogram,
    StageInfo,
    as_png,
)
from robustcompress.robustness.curve import eps_curve
from robustcompress.robustness.evaluation import Evaluation
from robustcompress.robustness.evaluation import evaluate as measure
from robustcompress.robustness.examples import Example
from robustcompress.robustness.predictor import as_predictor
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
        found = _measure(context, network, files)
        curve = _curve(context, network)
        certified = certify_all(context, network, files, before, found)
    report = Report(
        run=_run_info(context, stages),
        network=_network_info(context, network.cpu()),
        stages=tuple(_stage_info(name, artifact) for name, artifact in stages.items() if name != "compact"),
        layers=_layers(context, network),
        histograms=_histograms(stages.get("prune")),
        measurements=found.measurements,
        files=tuple(_file_info(item) for item in files),
        artifact_bytes=_artifact_bytes(context, before),
        dense_bytes=sum(t.numel() * t.element_size() for t in context.model.state_dict().values()),
        curve=curve,
        certified=certified,
        examples=tuple(_example(context, item) for item in found.examples),
    )
    folder = context.run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "report.json", report.model_dump_json(indent=1).encode())
    write_bytes(folder / "report.html", render_page(report).encode())
    return report


def _measure(context: Context, network: nn.Module, files: Sequence[Exported]) -> Evaluation:
    settings = context.recipe.evaluation

    def progress(task: str, done: int, total: int) -> None:
        check_stop(context.stop, "evaluate")
        context.events(Progress("evaluate", task, done, total))

    return measure(
        network,
        context.judged,
        threat=context.recipe.evaluation_threat,
        attacks=settings.attacks,
        seed=context.recipe.seed,
        device=context.device,
        files={item.path.name: OnnxSession(item.path) for item in files if item.kind == "onnx"},
        progress=progress,
        keep_examples=settings.examples,
        limit=settings.limit,
    )


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


def _run_info(context: Context, stages: Mapping[str, Artifact]) -> RunInfo:
    seconds = sum(cast(float, artifact.metrics.get("seconds", 0.0)) for artifact in stages.values())
    return RunInfo(
        name=context.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        device=_device_name(context.device),
        seed=context.recipe.seed,
        versions=versions(),
        recipe=context.recipe.model_dump(mode="json"),
        data=context.data_name,
        data_fingerprint=context.fingerprint,
        judged_on="test" if context.test is not None else "validation",
        warnings=tuple(context.warnings),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _network_info(context: Context, network: nn.Module) -> NetworkInfo:
    dense = copy.deepcopy(context.model).cpu()
    images = context.example_inputs[:1].cpu()
    costs, compact_costs = count_macs(dense, images), count_macs(network, images)
    counts = weight_counts(network, dict(dense.named_parameters()))
    return NetworkInfo(
        name=type(network).__name__.lstrip("_"),
        parameters=sum(parameter.numel() for parameter in dense.parameters()),
        weights=sum(cost.weights for cost in costs.values()),
        kept_weights=sum(count["kept"] for count in counts.values()),
        macs=sum(cost.macs for cost in costs.values()),
        compact_macs=sum(cost.macs for cost in compact_costs.values()),
        effective_macs=effective_macs(compact_costs),
        frozen=tuple(FrozenPart(name=part.name, reason=part.reason) for part in context.plan().frozen),
    )


def _layers(context: Context, network: nn.Module) -> tuple[LayerInfo, ...]:
    counts = weight_counts(network, dict(context.model.named_parameters()))
    return tuple(LayerInfo(name=name, **count) for name, count in counts.items())


def _stage_info(name: str, artifact: Artifact) -> StageInfo:
    metrics = cast(Mapping[str, Any], artifact.metrics)
    selected = metrics.get("selected")
    return StageInfo(
        name=name,
        seconds=metrics.get("seconds", 0.0),
        epochs=tuple(EpochInfo(**record) for record in metrics.get("history", [])),
        selected=EpochInfo(**selected) if selected else None,
    )


def _histograms(pruned: Artifact | None) -> tuple[SiteHistogram, ...]:
    if pruned is None:
        return ()
    found = cast(Mapping[str, Any], pruned.metrics.get("histograms", {}))
    return tuple(
        SiteHistogram.model_validate({"name": name, "histogram": values}) for name, values in found.items()
    )


def _file_info(item: Exported) -> FileInfo:
    return FileInfo(
        name=item.path.name,
        format=item.kind,
        style=item.style,
        size_bytes=item.size_bytes,
        dense_size_bytes=item.dense_size_bytes,
        sha256=item.sha256,
        largest_difference=item.largest_difference,
        images_compared=item.images_compared,
        details=dict(item.details),
    )


def _artifact_bytes(context: Context, before: Artifact) -> int:
    folder = context.run_dir / ("artifact" if before.stage == "compact" else f"stages/{before.stage}")
    return sum(path.stat().st_size for path in folder.glob("model.safetensors")) or 1


def _example(context: Context, item: Example) -> ExampleInfo:
    def name(label: int) -> str:
        return context.classes[label] if label < len(context.classes) else str(label)

    return ExampleInfo(
        original=as_png(item.original),
        adversarial=as_png(item.adversarial),
        label=name(item.label),
        attack=item.attack,
        clean={subject: name(found) for subject, found in item.clean_predictions.items()},
        attacked={subject: name(found) for subject, found in item.attacked_predictions.items()},
    )
