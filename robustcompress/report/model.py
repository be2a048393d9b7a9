"""A run's report: every number with what is needed to measure it again."""

import base64
import io
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.robustness.alarms.reliability import Reliability
from robustcompress.robustness.certification import CertifiedAccuracy
from robustcompress.robustness.measurement import Measurement

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunInfo(_Part):
    """How the run was made.

    Attributes:
        name: The recipe's.
        created: UTC, ISO 8601.
        seconds: Spent in all stages, earlier sittings of a resumed run included.
        device: Where training and attacks ran.
        seed: Of everything.
        versions: By package.
        recipe: Every setting.
        data: Name of the data set; empty for a user's own.
        data_fingerprint: Hash of the training data.
        judged_on: ``test``, or ``validation`` where no test data were given.
        warnings: What was not as it should be.
    """

    name: str
    created: str
    seconds: float
    device: str
    seed: int
    versions: dict[str, str]
    recipe: dict[str, Any]
    data: str
    data_fingerprint: str
    judged_on: str
    warnings: tuple[str, ...] = ()


class FrozenPart(_Part):
    """A part of the network that stayed dense, and why."""

    name: str
    reason: str


class NetworkInfo(_Part):
    """The network before and after.

    Attributes:
        name: Class name.
        parameters: Of the dense network.
        weights: Of its convolutions and linear layers.
        kept_weights: Of those, not zero now.
        macs: Multiply-adds of one image, dense.
        compact_macs: The same of the compressed network's shapes; smaller only if channels are gone.
        effective_macs: Multiply-adds with weights that are not zero.
        frozen: What stayed dense.
    """

    name: str
    parameters: int
    weights: int
    kept_weights: int
    macs: int
    compact_macs: int
    effective_macs: int
    frozen: tuple[FrozenPart, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of the dense network's weights that are gone."""
        return 1 - self.kept_weights / self.weights if self.weights else 0.0


class EpochInfo(_Part):
    """One epoch; accuracies are fractions of validation images, ``None`` if it was not judged."""

    epoch: int
    loss: float
    lr: float
    validation_clean: float | None
    validation_robust: float | None
    best: bool
    validation_certified: float | None = None


class StageInfo(_Part):
    """One training stage: its epochs, and the one whose weights went on."""

    name: str
    seconds: float
    epochs: tuple[EpochInfo, ...]
    selected: EpochInfo | None


class Histogram(_Part):
    """How many kept and removed units have which magnitude before finetuning.

    Attributes:
        edges: Of the bins, ascending, one more than there are bins.
        kept: Units in each bin that stayed.
        removed: Units in each bin that went.
    """

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]


class LayerInfo(_Part):
    """One convolution or linear layer: weights in the dense network, and those not zero now."""

    name: str
    size: int
    kept: int


class SiteHistogram(_Part):
    """The histogram of one masked layer or group."""

    name: str
    histogram: Histogram


class FileInfo(_Part):
    """An exported file, proven equal to the network.

    Attributes:
        name: Of the file.
        format: It is in.
        style: How weights lie in it.
        size_bytes: Of the file.
        dense_size_bytes: Of the same file with dense weights; fewer where channels are gone.
        sha256: Of the file, hexadecimal.
        largest_difference: Of its logits from the network's, over the largest logit.
        images_compared: How many that was measured on.
        details: Whatever else the format says.
        original_size_bytes: Of the dense network's parameters in float32, before any channel went; 0 in
            reports that do not say.
    """

    name: str
    format: str
    style: str
    size_bytes: int
    dense_size_bytes: int
    sha256: str
    largest_difference: float
    images_compared: int
    details: dict[str, str]
    original_size_bytes: int = 0

    @property
    def before_bytes(self) -> int:
        """What the file is smaller than: the dense network's parameters, where that is known."""
        return self.original_size_bytes or self.dense_size_bytes


class CurvePoint(_Part):
    """Robust accuracy of the network at one radius."""

    eps: float
    accuracy: float


class Curve(_Part):
    """Robust accuracy against eps."""

    attack: str
    norm: str
    count: int
    points: tuple[CurvePoint, ...]


class CertifiedInfo(_Part):
    """What a certifier proved about one subject.

    Attributes:
        subject: ``network`` or the name of an exported file.
        certifier: As it prints itself, such as ``best``.
        settings: All of its settings.
        norm: In which radii are measured.
        smoothed: Whether the statement is about the subject under noise, and not about the subject itself.
        abstained: Images of which nothing was proven; they count as wrong.
        accuracies: Fraction certified right, at each radius.
    """

    subject: str
    certifier: str
    settings: dict[str, Any]
    norm: str
    smoothed: bool
    abstained: int
    accuracies: tuple[CertifiedAccuracy, ...]


class ClassInfo(_Part):
    """One class of the judged images, under one subject.

    Attributes:
        subject: ``network`` or the name of an exported file.
        label: The class.
        count: Images of it.
        clean: Of these, right clean.
        standing: Of these, right whatever was tried.
    """

    subject: str
    label: str
    count: int
    clean: int
    standing: int


class Agreement(_Part):
    """How often the compressed network and the dense one it came from say the same class of a clean image."""

    same: int
    count: int


class ExampleInfo(_Part):
    """An image that an attack changed; pictures are PNG in base64.

    Attributes:
        original: The image.
        adversarial: What the attack made of it.
        label: The right class.
        attack: Who made it.
        clean: Predicted class of the original, by subject.
        attacked: Predicted class of the adversarial image, by subject.
    """

    original: str
    adversarial: str
    label: str
    attack: str
    clean: dict[str, str]
    attacked: dict[str, str]


class Report(_Part):
    """Everything about one run.

    Attributes:
        artifact_bytes: Of the artifact's tensors on disk.
        dense_bytes: Of the dense network's parameters and buffers in memory.
        reliability: By subject, whether its robust accuracy may be believed.
        classes: Per subject and class: clean, and right whatever was tried.
        agreement: With the dense network; ``None`` if the run did not begin with one.
    """

    schema_version: int = SCHEMA
    run: RunInfo
    network: NetworkInfo
    stages: tuple[StageInfo, ...]
    layers: tuple[LayerInfo, ...]
    histograms: tuple[SiteHistogram, ...] = ()
    measurements: tuple[Measurement, ...]
    files: tuple[FileInfo, ...] = ()
    artifact_bytes: int
    dense_bytes: int
    curve: Curve | None = None
    certified: tuple[CertifiedInfo, ...] = ()
    reliability: dict[str, Reliability] = Field(default_factory=dict[str, Reliability])
    classes: tuple[ClassInfo, ...] = ()
    agreement: Agreement | None = None
    examples: tuple[ExampleInfo, ...] = Field(default=(), repr=False)

    def unreliable(self, subject: str) -> bool:
        """Return whether alarms say that the subject's robust accuracy is not to be believed."""
        return subject in self.reliability and self.reliability[subject].status == "unreliable"

    def worst_class(self, subject: str) -> ClassInfo | None:
        """Return the class of which the least was standing; ``None`` if classes were not counted."""
        own = [item for item in self.classes if item.subject == subject and item.count]
        return min(own, key=lambda item: item.standing / item.count, default=None)

    def measured(self, subject: str, attack: str) -> Measurement | None:
        """Return one measurement, if it was made; the attack may be named by its beginning."""
        for measurement in self.measurements:
            if measurement.subject == subject and measurement.attack.startswith(attack):
                return measurement
        return None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report.

        Raises:
            StorageError: If there is none, or it is no report of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}. Was the run evaluated?") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "whole file"
            raise StorageError(f"{path}: no report of this version: {place}: {first['msg']}") from error


def magnitude_histogram(saliency: Tensor, mask: Tensor, *, bins: int = 40) -> Histogram:
    """Count kept and removed units by magnitude.

    Args:
        saliency: Signed magnitudes, any shape.
        mask: bool, the same shape, True where kept.
        bins: Of equal width from 0 to the largest magnitude.
    """
    magnitudes = saliency.detach().abs().flatten().double().cpu()
    kept = mask.flatten().cpu()
    top = max(float(magnitudes.max()), 1e-12)
    edges = torch.linspace(0, top, bins + 1, dtype=torch.float64)

    def counts(chosen: Tensor) -> tuple[int, ...]:
        return tuple(int(n) for n in torch.histogram(magnitudes[chosen], edges).hist)

    return Histogram(edges=tuple(edges.tolist()), kept=counts(kept), removed=counts(~kept))


def as_png(image: Tensor) -> str:
    """Return float ``[channels, height, width]`` in [0, 1] as a PNG in base64.

    Three channels are shown in colour; of any other number, the first one in grey.
    """
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    if len(pixels) == 3:
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy(), mode="RGB")
    else:
        picture = Image.fromarray(pixels[0].contiguous().numpy(), mode="L")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
