"""Deployment formats: each writes a network to a file, reads it back and proves that it is the same."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from robustcompress.member import Member, class_attribute

if TYPE_CHECKING:
    from robustcompress.export.formats.c import C as C
    from robustcompress.export.formats.onnx import Onnx as Onnx
    from robustcompress.export.formats.onnx_int8 import OnnxInt8 as OnnxInt8
    from robustcompress.export.formats.safetensors import Safetensors as Safetensors


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back and found equal to the network.

    Attributes:
        path: The file.
        kind: Name of the format.
        style: How weights lie in the file, such as ``compact`` or ``dense``.
        size_bytes: Length of the file.
        dense_size_bytes: Length of the same file with dense weights: of the network that was written, which
            may have fewer channels than the one that a run began with.
        sha256: Of the file, hexadecimal.
        largest_difference: Between logits of network and file, over the largest logit.
        images_compared: How many images that was measured on.
        details: Whatever else a report may show (opset, IR version, ...).
        original_size_bytes: What the parameters of the network that a run began with, dense and with all its
            channels, take in float32; 0 where that is not known.
    """

    path: Path
    kind: str
    style: str
    size_bytes: int
    dense_size_bytes: int
    sha256: str
    largest_difference: float
    images_compared: int
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    original_size_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**vars(self), "path": str(self.path), "details": dict(self.details)}


class Format(Member, ABC):
    """Settings of one deployment format.

    Attributes:
        name: The file's, without its suffix. A recipe may write several files of one format, each under its
            own name.
    """

    family: ClassVar[str] = "robustcompress.export.formats"
    suffix: ClassVar[str]

    name: str = Field(default="model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")

    @property
    def file_name(self) -> str:
        """What the file is called."""
        return f"{self.name}{self.suffix}"

    @abstractmethod
    def write(
        self,
        network: nn.Module,
        path: Path,
        *,
        images: Tensor,
        metadata: Mapping[str, str],
        calibration: Callable[[], Tensor] | None = None,
    ) -> Exported:
        """Write ``network`` to ``path`` and prove that the file computes the same.

        Args:
            network: On the CPU; images in [0, 1] to logits. It is not changed.
            path: Replaced atomically, and only after the proof.
            images: float32 ``[batch, ...]``, real images to compare on.
            metadata: Stored in the file.
            calibration: Makes float32 ``[n, ...]`` images, clean and adversarial, to learn ranges of
                activations from; called by formats that need them, and by no other. ``None`` where there
                are none.

        Raises:
            ExportError: If the network cannot be written or the file computes something else.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(Format, name)
