"""The model card of a run's export folder, from what the run knows and what its files claim."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustcompress.export.claims import read_claims
from robustcompress.export.formats import Exported
from robustcompress.pipeline.claims import Claims, claims_of
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.report_parts import file_info
from robustcompress.report.model_card import Attacked, AttackRow, Making, model_card
from robustcompress.robustness.measurement import Count
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.atomic import write_bytes

CARD = "MODEL_CARD.md"


def write_card(context: Context, before: Artifact, files: Sequence[Exported]) -> Path:
    """Write the card beside the files of ``run_dir/export``; how each was attacked comes from its own claims.

    Args:
        context: Of the run.
        before: What was exported.
        files: What lies in the folder.

    Raises:
        StorageError: If a file cannot be read, or the card cannot be written.
        ExportError: If what a file claims cannot be understood.
    """
    ordered = sorted(files, key=lambda item: item.path.name)
    attacked = {
        item.path.name: _attacked(claims_of(item.path))
        for item in ordered
        if item.path.suffix == ".onnx" and read_claims(item.path) is not None
    }
    path = context.run_dir / "export" / CARD
    text = model_card(_making(context, before), [file_info(item) for item in ordered], attacked)
    write_bytes(path, text.encode())
    return path


def _making(context: Context, before: Artifact) -> Making:
    counted = before.sparsity.values()
    return Making(
        recipe=context.recipe.model_dump(mode="json"),
        data=context.data_name,
        data_fingerprint=before.data_fingerprint,
        versions=before.versions,
        weights=sum(counts["size"] for counts in counted),
        kept_weights=sum(counts["kept"] for counts in counted),
        image_shape=tuple(context.example_inputs.shape[1:]),
        classes=_classes(context, before),
        class_names=context.classes,
    )


def _classes(context: Context, before: Artifact) -> int:
    with torch.no_grad():
        logits: Tensor = context.network_of(before)(context.example_inputs[:1].cpu())
    return logits.shape[1]


def _attacked(claims: Claims) -> Attacked:
    """Return what a file claims, each claim with the settings of its attack."""
    settings = {str(attack): attack.model_dump(mode="json") for attack in claims.attacks}
    rows: list[AttackRow] = []
    for claim in claims.claims:
        said = ", ".join(
            f"{name} {value}"
            for name, value in settings.get(claim.attack, {}).items()
            if name != "kind" and isinstance(value, str | int | float)
        )
        part = f"part of {claim.part_of}" if claim.part_of else ""
        everything = "an image counts if it withstood all of these" if claim.attack == "worst case" else ""
        text = "; ".join(filter(None, (said, part, everything)))
        rows.append(
            AttackRow(claim.attack, claim.access, text, Count(correct=claim.correct, count=claims.count))
        )
    return Attacked(
        threat=claims.threat,
        judged_on=claims.judged_on,
        data=claims.data,
        images_sha256=claims.images_sha256,
        seed=claims.seed,
        device=claims.device,
        versions=claims.versions,
        rows=tuple(rows),
    )
