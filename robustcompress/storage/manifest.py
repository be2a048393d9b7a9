"""What ``artifact.json`` holds, field by field."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA = 1
MODEL_FILE = "model.safetensors"
EXTRA_FILE = "masks.safetensors"
MANIFEST_FILE = "artifact.json"

_Plain = dict[str, Any]  # any JSON object: its meaning is not storage's business
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class LayerCount(BaseModel):
    """How many weights of one layer exist and how many of them are kept."""

    model_config = _STRICT
    size: Annotated[int, Field(ge=0)]
    kept: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _kept_is_part_of_size(self) -> Self:
        if self.kept > self.size:
            raise ValueError(f"kept must be at most size, {self.size}")
        return self


class FileEntry(BaseModel):
    """Length and hash of one file of the artifact."""

    model_config = _STRICT
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The whole of ``artifact.json``. File names are fixed, so that none can point elsewhere."""

    model_config = _STRICT
    format: Literal["robustcompress-artifact"]
    schema_version: int
    stage: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    data_fingerprint: str
    architecture: _Plain
    recipe: _Plain
    threat: _Plain
    metrics: _Plain
    versions: dict[str, str]
    sparsity: dict[str, LayerCount]
    shapes: dict[str, list[Annotated[int, Field(ge=0)]]]
    extra_shapes: dict[str, list[Annotated[int, Field(ge=0)]]]
    files: dict[Literal["model.safetensors", "masks.safetensors"], FileEntry]

    @model_validator(mode="after")
    def _files_are_complete(self) -> Self:
        if MODEL_FILE not in self.files:
            raise ValueError(f"files must list {MODEL_FILE}")
        if bool(self.extra_shapes) != (EXTRA_FILE in self.files):
            raise ValueError(f"files must list {EXTRA_FILE} if and only if extra_shapes is not empty")
        return self
