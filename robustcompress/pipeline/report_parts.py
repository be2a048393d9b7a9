"""The parts of a report that are known before anything is attacked."""

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import torch
from torch import nn

from robustcompress.export.formats import Exported
from robustcompress.graph.cost import count_macs, effective_macs
from robustcompress.pipeline.compacting import weight_counts
from robustcompress.pipeline.context import Context, versions
from robustcompress.report.model import (
    EpochInfo,
    ExampleInfo,
    FileInfo,
    FrozenPart,
    LayerInfo,
    NetworkInfo,
    RunInfo,
    SiteHistogram,
    StageInfo,
    as_png,
)
from robustcompress.robustness.examples import Example
from robustcompress.storage.artifact import Artifact


def run_info(context: Context, stages: Mapping[str, Artifact]) -> RunInfo:
    """Return how the run was made."""
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


def network_info(context: Context, network: nn.Module) -> NetworkInfo:
    """Return the network before and after."""
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


def layers(context: Context, network: nn.Module) -> tuple[LayerInfo, ...]:
    """Return how much of each layer was kept."""
    counts = weight_counts(network, dict(context.model.named_parameters()))
    return tuple(LayerInfo(name=name, **count) for name, count in counts.items())


def stage_info(name: str, artifact: Artifact) -> StageInfo:
    """Return one training stage."""
    metrics = cast(Mapping[str, Any], artifact.metrics)
    selected = metrics.get("selected")
    return StageInfo(
        name=name,
        seconds=metrics.get("seconds", 0.0),
        epochs=tuple(EpochInfo(**record) for record in metrics.get("history", [])),
        selected=EpochInfo(**selected) if selected else None,
    )


def histograms(pruned: Artifact | None) -> tuple[SiteHistogram, ...]:
    """Return how many weights of which magnitude were kept."""
    if pruned is None:
        return ()
    found = cast(Mapping[str, Any], pruned.metrics.get("histograms", {}))
    return tuple(
        SiteHistogram.model_validate({"name": name, "histogram": values}) for name, values in found.items()
    )


def file_info(item: Exported) -> FileInfo:
    """Return an exported file."""
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
        original_size_bytes=item.original_size_bytes,
    )


def artifact_bytes(context: Context, before: Artifact) -> int:
    """Return the bytes of the artifact's tensors on the disk."""
    folder = context.run_dir / ("artifact" if before.stage == "compact" else f"stages/{before.stage}")
    return sum(path.stat().st_size for path in folder.glob("model.safetensors")) or 1


def example(context: Context, item: Example) -> ExampleInfo:
    """Return an adversarial image as pictures."""

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
