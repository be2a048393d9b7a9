"""Write the compressed network in every format asked for, each proven equal to the network."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.export.formats import Exported, Format
from robustcompress.pipeline.calibrating import calibration_of
from robustcompress.pipeline.constraint_checks import check_exported
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.mixed_precision import chosen_values
from robustcompress.robustness.batches import checked_batches
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.atomic import read_bytes, write_bytes
from robustcompress.storage.strict_json import parse_list

INDEX = "export.json"

CHECKED = 128
"""Images that the run is judged on, on which each file is compared with the network."""
_FLOAT_BYTES = 4
_LARGEST_INDEX = 16 * 2**20


class _Row(BaseModel):
    """One file of the index; a name and no path, so that it lies in the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    path: Annotated[str, Field(pattern=r"^[^./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,254}$")]
    kind: str
    style: str
    size_bytes: Annotated[int, Field(ge=0)]
    dense_size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    largest_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    images_compared: Annotated[int, Field(ge=0)]
    details: dict[str, str]
    original_size_bytes: Annotated[int, Field(ge=0)] = 0


def export(context: Context, before: Artifact) -> list[Exported]:
    """Write each format of the recipe into ``run_dir/export`` and an index beside them.

    Raises:
        ExportError: If a format cannot hold the network or its file computes something else.
        ConfigError: If a file misses a constraint on bytes or latency; the files stay.
    """
    folder = context.run_dir / "export"
    folder.mkdir(parents=True, exist_ok=True)
    images = check_images(context)
    written = [
        export_one(format, context, before, folder / format.file_name, images=images)
        for format in context.recipe.export
    ]
    write_index(folder, written)
    check_exported(context, written)
    return written


def write_index(folder: Path, files: Sequence[Exported]) -> None:
    """List ``files`` of ``folder`` in an index, which a later evaluation reads."""
    rows = [{**item.as_dict(), "path": item.path.name} for item in files]
    write_bytes(folder / INDEX, json.dumps(rows, indent=1, sort_keys=True).encode())


def export_one(
    network_format: Format, context: Context, before: Artifact, path: Path, *, images: Tensor | None = None
) -> Exported:
    """Write one format to ``path``, proven on ``images``, by default :func:`check_images`."""
    network = context.network_of(before)
    pixels = check_images(context) if images is None else images
    chosen, measured = chosen_values(network_format, context, network, pixels)
    written = chosen.write(
        network,
        path,
        images=pixels,
        metadata=claims(before),
        calibration=calibration_of(context, network),
    )
    details = {**written.details, **({"values_chosen": measured} if measured else {})}
    return replace(written, original_size_bytes=original_bytes(context), details=details)


def check_images(context: Context) -> Tensor:
    """Return the first 128 images that the run is judged on, float32 on the CPU; fewer if there are fewer.

    Raises:
        DataError: If they are not what images must be.
    """
    batches = checked_batches(context.judged, device="cpu", limit=CHECKED)
    return torch.cat([batch.images.float() for batch in batches])


def original_bytes(context: Context) -> int:
    """Return what the parameters of the network that the run began with take in float32."""
    return _FLOAT_BYTES * sum(parameter.numel() for parameter in context.model.parameters())


def claims(artifact: Artifact) -> dict[str, str]:
    """Return what an exported file says of itself."""
    size = sum(counts["size"] for counts in artifact.sparsity.values())
    kept = sum(counts["kept"] for counts in artifact.sparsity.values())
    return {
        "robustcompress.version": artifact.versions.get("robustcompress", ""),
        "robustcompress.recipe": json.dumps(artifact.recipe, sort_keys=True),
        "robustcompress.threat": json.dumps(artifact.threat, sort_keys=True),
        "robustcompress.sparsity": f"{1 - kept / size:.6f}" if size else "0",
        "robustcompress.data_sha256": artifact.data_fingerprint,
    }


def read_index(folder: Path) -> list[Exported]:
    """Return what was exported into ``folder``; empty if nothing was.

    Raises:
        StorageError: If the index cannot be read.
    """
    index = folder / INDEX
    if not index.exists():
        return []
    advice = "Delete it and export again."
    rows = parse_list(read_bytes(index, max_bytes=_LARGEST_INDEX), where=f"{index}", advice=advice)
    try:
        found = [_Row.model_validate(row) for row in rows]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "a row"
        raise StorageError(f"{index}: {place}: {first['msg']}. {advice}") from error
    if len({row.path for row in found}) != len(found):
        raise StorageError(f"{index}: a file is listed twice. {advice}")
    return [Exported(path=folder / row.path, **row.model_dump(exclude={"path"})) for row in found]


def check_files(files: Sequence[Exported]) -> None:
    """Check that each file is the one that was proven equal to the network.

    Raises:
        StorageError: If a file is gone or changed.
    """
    for item in files:
        if not item.path.is_file():
            raise StorageError(f"{item.path}: was exported but is gone. Export again.")
        if hashlib.sha256(item.path.read_bytes()).hexdigest() != item.sha256:
            raise StorageError(
                f"{item.path}: changed since it was proven equal to the network. Export again."
            )
