"""What one stage hands to the next, on disk: a folder of tensors and plain JSON, without pickle."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage.atomic import atomic_folder, read_bytes, settled
from robustcompress.storage.faults import explained
from robustcompress.storage.manifest import EXTRA_FILE, MANIFEST_FILE, MODEL_FILE, SCHEMA, Manifest
from robustcompress.storage.sparse_file import MAX_BYTES, read_tensors, write_tensors
from robustcompress.storage.strict_json import dump, validated

_MANIFEST_LIMIT = 64 * 2**20
_OURS = frozenset({MODEL_FILE, EXTRA_FILE, MANIFEST_FILE})


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A network and all that is needed to know where it came from.

    Everything but the tensors is plain JSON data, which storage does not look into: None, booleans,
    finite numbers, text, sequences and mappings with text keys. Sequences come back as lists.

    Attributes:
        stage: Which stage made it.
        tensors: Parameters and buffers by name, as in a ``state_dict``.
        seed: Of the run, 0 to 2**64 - 1.
        architecture: What to build before the tensors are put in; empty if only the user can say.
        recipe: Settings of the run.
        threat: What the network was made robust against.
        metrics: Whatever was measured.
        sparsity: By layer name, how many weights there are (``size``) and how many are ``kept``.
        versions: Version by package name.
        data_fingerprint: Identifies the training data.
        extra_tensors: Whatever a later stage needs besides the network, such as scores and masks.
    """

    stage: str
    tensors: Mapping[str, Tensor]
    seed: int
    architecture: Mapping[str, object] = field(default_factory=dict[str, object])
    recipe: Mapping[str, object] = field(default_factory=dict[str, object])
    threat: Mapping[str, object] = field(default_factory=dict[str, object])
    metrics: Mapping[str, object] = field(default_factory=dict[str, object])
    sparsity: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    data_fingerprint: str = ""
    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of ``tensors``."""
        return _shapes(self.tensors)


def save_artifact(artifact: Artifact, folder: Path) -> None:
    """Write ``artifact`` to ``folder``, which afterwards holds nothing else; atomic and durable.

    Raises:
        StorageError: If a field cannot be stored (the message names it), the folder cannot be written, or
            it holds anything but an artifact. The old artifact, if any, is then untouched.
    """
    folder = Path(folder)
    contents = {MODEL_FILE: write_tensors(artifact.tensors)}
    if artifact.extra_tensors:
        contents[EXTRA_FILE] = write_tensors(artifact.extra_tensors)
    contents[MANIFEST_FILE] = _manifest_bytes(artifact, contents, f"{folder / MANIFEST_FILE}")
    _refuse_foreign_files(folder)
    with atomic_folder(folder) as fresh:
        for name, data in contents.items():
            (fresh / name).write_bytes(data)


def has_artifact(folder: Path) -> bool:
    """Return whether ``folder`` holds an artifact, a save that was killed half-way undone or completed first.

    Raises:
        StorageError: If the folder cannot be recovered or looked into.
    """
    with settled(Path(folder)) as folder, explained("read", folder):
        return (folder / MANIFEST_FILE).exists()


def load_artifact(folder: Path, *, max_bytes: int = MAX_BYTES) -> Artifact:
    """Return the artifact in ``folder``. Runs no code of its maker: no pickle, no import.

    Hashes, names, shapes, index ranges and claimed sizes are checked before anything is allocated. A
    save that was killed half-way is undone or completed first.

    Args:
        folder: Written by ``save_artifact``.
        max_bytes: The most that each file, and its tensors once dense, may take.

    Raises:
        StorageError: If there is no artifact or it is damaged; the message names the file and the field.
    """
    with settled(Path(folder)) as folder:
        path = folder / MANIFEST_FILE
        with explained("read", path):
            if not path.exists():
                raise StorageError(f"{folder} holds no artifact: {MANIFEST_FILE} is missing. Check the path.")
        text = read_bytes(path, max_bytes=_MANIFEST_LIMIT)
        manifest = validated(Manifest, text, where=str(path), schema=SCHEMA)
        contents = {str(name): _checked(folder, name, manifest, max_bytes) for name in manifest.files}
    shapes = {MODEL_FILE: manifest.shapes, EXTRA_FILE: manifest.extra_shapes}
    tensors = {
        name: read_tensors(
            data,
            expected_shapes={tensor: tuple(shape) for tensor, shape in shapes[name].items()},
            max_bytes=max_bytes,
            where=str(folder / name),
        )
        for name, data in contents.items()
    }
    return Artifact(
        stage=manifest.stage,
        tensors=tensors[MODEL_FILE],
        seed=manifest.seed,
        architecture=manifest.architecture,
        recipe=manifest.recipe,
        threat=manifest.threat,
        metrics=manifest.metrics,
        sparsity={
            name: {"size": count.size, "kept": count.kept} for name, count in manifest.sparsity.items()
        },
        versions=manifest.versions,
        data_fingerprint=manifest.data_fingerprint,
        extra_tensors=tensors.get(EXTRA_FILE, {}),
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _manifest_bytes(artifact: Artifact, contents: Mapping[str, bytes], where: str) -> bytes:
    fields = {
        "format": "robustcompress-artifact",
        "schema_version": SCHEMA,
        "stage": artifact.stage,
        "seed": artifact.seed,
        "data_fingerprint": artifact.data_fingerprint,
        "architecture": artifact.architecture,
        "recipe": artifact.recipe,
        "threat": artifact.threat,
        "metrics": artifact.metrics,
        "versions": artifact.versions,
        "sparsity": artifact.sparsity,
        "shapes": artifact.shapes,
        "extra_shapes": _shapes(artifact.extra_tensors),
        "files": {
            name: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        },
    }
    text = dump(fields, where=where, indent=2)
    advice = "Correct the artifact before saving it."  # what we write, we must be able to read
    validated(Manifest, text, where=where, schema=SCHEMA, advice=advice)
    return text.encode() + b"\n"


def _refuse_foreign_files(folder: Path) -> None:
    """Replacing a folder removes what is in it: make sure that it is ours."""
    with explained("write", folder):
        if not folder.is_dir():
            return
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in _OURS)
    if foreign:
        raise StorageError(
            f"{folder} holds {foreign[0]!r}, which is no part of an artifact and would be lost. "
            "Choose another folder, or move that away."
        )


def _checked(folder: Path, name: str, manifest: Manifest, max_bytes: int) -> bytes:
    """Return the content of a file that the manifest lists, its length and hash checked."""
    path = folder / name
    entry = next(entry for listed, entry in manifest.files.items() if listed == name)
    data = read_bytes(path, max_bytes=max_bytes)
    if len(data) != entry.size_bytes:
        raise StorageError(
            f"{path}: expected {entry.size_bytes} bytes (files.{name}.size_bytes in {MANIFEST_FILE}); "
            f"got {len(data)}. It was damaged or belongs to another artifact."
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise StorageError(
            f"{path}: expected SHA-256 {entry.sha256} (files.{name}.sha256 in {MANIFEST_FILE}); "
            f"got {digest}. It was damaged or belongs to another artifact."
        )
    return data
