"""Write the compressed network in every format asked for, each proven equal to the network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from robustcompress.errors import StorageError
from robustcompress.export.formats import Exported, Format
from robustcompress.pipeline.constraint_checks import check_exported
from robustcompress.pipeline.context import Context
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.atomic import write_bytes

INDEX = "export.json"


def export(context: Context, before: Artifact) -> list[Exported]:
    """Write each format of the recipe into ``run_dir/export`` and an index beside them.

    Raises:
        ExportError: If a format cannot hold the network or its file computes something else.
        ConfigError: If a file misses a constraint on bytes or latency; the files stay.
    """
    network = context.network_of(before)
    folder = context.run_dir / "export"
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        format.write(
            network,
            folder / f"model{format.suffix}",
            images=context.example_inputs.detach().cpu(),
            metadata=claims(before),
        )
        for format in context.recipe.export
    ]
    write_index(folder, written)
    check_exported(context, written)
    return written


def write_index(folder: Path, files: Sequence[Exported]) -> None:
    """List ``files`` of ``folder`` in an index, which a later evaluation reads."""
    rows = [{**item.as_dict(), "path": item.path.name} for item in files]
    write_bytes(folder / INDEX, json.dumps(rows, indent=1, sort_keys=True).encode())


def export_one(network_format: Format, context: Context, before: Artifact, path: Path) -> Exported:
    """Write one format to ``path``."""
    return network_format.write(
        context.network_of(before),
        path,
        images=context.example_inputs.detach().cpu(),
        metadata=claims(before),
    )


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
    try:
        rows = cast(list[Mapping[str, Any]], json.loads(index.read_text(encoding="utf-8")))
        return [Exported(**{**row, "path": folder / row["path"]}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{index}: cannot be read ({error}). Delete it and export again.") from error


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
