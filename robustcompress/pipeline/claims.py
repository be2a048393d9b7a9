"""What a file or an artifact claims of itself, with all that is needed to measure it again."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from robustcompress.errors import ExportError, StorageError
from robustcompress.export.claims import bare_sha256, read_claims, write_claims
from robustcompress.export.formats import Exported
from robustcompress.pipeline.context import Context, versions
from robustcompress.pipeline.exporting import INDEX, write_index
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.measurement import Access, Measurement
from robustcompress.robustness.threat import Threat
from robustcompress.storage.atomic import write_bytes

_LEVELS = 65_535


class Claim(BaseModel):
    """How many of the images were right under one attack.

    Attributes:
        attack: As it prints itself, ``clean``, ``8-bit pixels`` or ``worst case``.
        access: What the attack could see.
        part_of: The ensemble that the attack is a member of; empty if none.
        correct: Images judged right.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    attack: str
    access: Access
    part_of: str = ""
    correct: int = Field(ge=0)

    @classmethod
    def of(cls, measurement: Measurement) -> Self:
        """Return what ``measurement`` claims."""
        return cls(
            attack=measurement.attack,
            access=measurement.access,
            part_of=str(measurement.settings.get("part of", "")),
            correct=measurement.correct,
        )

    @property
    def key(self) -> tuple[str, Access, str]:
        """What tells it from the others of a subject."""
        return self.attack, self.access, self.part_of


class Claims(BaseModel):
    """Everything that was measured of one subject, and how.

    Attributes:
        schema_version: Of this record.
        sha256: Of what was judged: the file without its claims, or an artifact's tensors.
        data: Name of the images.
        judged_on: ``test``, or ``validation`` where no test images were given.
        images_sha256: Of the images and labels that were judged, see :func:`images_sha256`.
        count: Images judged.
        batch_size: Of the batches, on which random starts depend.
        threat: What the attacks could do.
        attacks: With all their settings.
        seed: Of every random number.
        device: Where gradients were computed.
        versions: Of the packages that a result depends on.
        claims: The numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: Literal[1] = 1
    sha256: str
    data: str
    judged_on: Literal["test", "validation"]
    images_sha256: str
    count: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    threat: Threat
    attacks: tuple[Annotated[SerializeAsAny[Attack], BeforeValidator(Attack.find)], ...]
    seed: int
    device: str
    versions: dict[str, str]
    claims: tuple[Claim, ...]


def record_claims(
    context: Context, files: Sequence[Exported], measurements: Sequence[Measurement]
) -> list[Exported]:
    """Write what was measured into each ONNX file, and beside the artifact's folder.

    The files' graphs keep every byte; their sizes and digests change, also in the index beside them.

    Args:
        context: Of the run that was evaluated.
        files: What was exported.
        measurements: Of ``network`` and of the files.

    Returns:
        The files as they are now.

    Raises:
        StorageError: If a file cannot be written.
    """
    by_subject: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        by_subject.setdefault(measurement.subject, []).append(measurement)
    common = _common(context, max(measurement.count for measurement in measurements))
    tensors = context.run_dir / "artifact" / "model.safetensors"
    if "network" in by_subject and tensors.is_file():
        with tensors.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        claims = _claims(common, digest, by_subject["network"])
        write_bytes(beside(tensors.parent), claims.model_dump_json(indent=1).encode())
    written: list[Exported] = []
    for item in files:
        if item.path.suffix == ".onnx" and item.path.name in by_subject:
            claims = _claims(common, bare_sha256(item.path), by_subject[item.path.name])
            now = write_claims(item.path, claims.model_dump(mode="json"))
            item = replace(item, sha256=now.sha256, size_bytes=now.size_bytes)
        written.append(item)
    for folder in {item.path.parent for item in written}:
        if (folder / INDEX).exists():
            write_index(folder, [item for item in written if item.path.parent == folder])
    return written


def claims_of(path: Path) -> Claims:
    """Return what an ONNX file, or the folder of an artifact, claims of itself.

    Raises:
        StorageError: If nothing can be read.
        ExportError: If it claims nothing, or what it claims cannot be understood.
    """
    if path.is_dir():
        try:
            found: dict[str, Any] | None = json.loads(beside(path).read_bytes())
        except OSError as error:
            raise StorageError(
                f"{beside(path)}: cannot be read: {error.strerror}. Was the run evaluated?"
            ) from error
        except ValueError as error:
            raise ExportError(f"{beside(path)}: not JSON: {error}. Evaluate the run again.") from error
    else:
        found = read_claims(path)
    if found is None:
        raise ExportError(
            f"{path.name} claims nothing: expected what `robustcompress evaluate` writes into its metadata. "
            "Evaluate the run that it was exported from."
        )
    try:
        return Claims.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ExportError(
            f"{path.name}: its claims cannot be understood: {place}: {first['msg']}. They may be of a newer "
            "version: evaluate again."
        ) from error


def digest_of(path: Path) -> str:
    """Return the SHA-256 that the claims of ``path``, an ONNX file or an artifact's folder, must name.

    Raises:
        StorageError: If it cannot be read.
        ExportError: If a file is no ONNX model.
    """
    if not path.is_dir():
        return bare_sha256(path)
    tensors = path / "model.safetensors"
    try:
        with tensors.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {tensors}: {error.strerror or error}. Check the path.") from error


def beside(folder: Path) -> Path:
    """Return where the claims of an artifact's folder lie."""
    return folder.with_name(f"{folder.name}.claims.json")


def images_sha256(batches: Batches, count: int) -> str:
    """Return a SHA-256 of the first ``count`` images, to 16 bits a pixel, and labels, however batched.

    Raises:
        DataError: If there are no batches, or one is not what it must be.
    """
    pixels, labels = hashlib.sha256(), hashlib.sha256()
    for batch in checked_batches(batches, device="cpu", limit=count):
        if batch.index == 0:
            pixels.update(repr(tuple(batch.images.shape[1:])).encode())
        rounded = batch.images.double().mul(_LEVELS).round().to(torch.int32)
        pixels.update(rounded.contiguous().numpy().tobytes())
        labels.update(batch.labels.contiguous().numpy().tobytes())
    return hashlib.sha256(pixels.digest() + labels.digest()).hexdigest()


def _common(context: Context, count: int) -> dict[str, Any]:
    """Return what the claims of all subjects of a run have in common."""
    return {
        "data": context.data_name,
        "judged_on": "validation" if context.test is None else "test",
        "images_sha256": images_sha256(context.judged, count),
        "count": count,
        "batch_size": len(_first(context.judged)[1]),
        "threat": context.recipe.evaluation_threat,
        "attacks": context.recipe.evaluation.attacks,
        "seed": context.recipe.seed,
        "device": context.device.type,
        "versions": versions(),
    }


def _claims(common: dict[str, Any], sha256: str, measurements: Iterable[Measurement]) -> Claims:
    return Claims(**common, sha256=sha256, claims=tuple(Claim.of(item) for item in measurements))


def _first(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    return next(iter(batches))
