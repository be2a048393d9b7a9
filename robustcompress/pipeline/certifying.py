"""Certify a network, or a file made from it, on the test images of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.events import Events, Progress, Sink
from robustcompress.pipeline.certificate_file import CertificateFile
from robustcompress.pipeline.context import resolve_device
from robustcompress.robustness.attacks import Settings
from robustcompress.robustness.certification import (
    CertifiedAccuracy,
    certified_accuracy,
    certify,
    check_radii,
)
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.threat import Norm
from robustcompress.training.loop import float32_math
from robustcompress.training.sources import as_source
from robustcompress.zoo.datasets import DataSet

_BATCH_SIZE = 64


class Certification(BaseModel):
    """What was proven about a data set, and all that is needed to prove it again.

    Attributes:
        subject: What was certified: the name of an artifact's folder or of an exported file.
        data: The images, with their subset.
        norm: In which radii are measured.
        certifier: Its settings.
        seed: Of every random number.
        device: Where noise was drawn; it draws otherwise elsewhere.
        accuracies: Certified accuracy at each radius asked for.
        abstained: Images about which nothing was proven.
        certificates: One per image, in the order of the data.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    subject: str
    data: str
    norm: Norm
    certifier: Settings
    seed: int
    device: str
    accuracies: tuple[CertifiedAccuracy, ...]
    abstained: int
    certificates: tuple[Certificate, ...]


def certify_data_set(
    network: nn.Module | Predictor,
    data: DataSet | str | Mapping[str, object],
    *,
    certifier: Certifier | str | Mapping[str, object],
    radii: Sequence[float],
    subject: str = "network",
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    keep: Path | None = None,
    fingerprint: str = "",
    sinks: Sequence[Sink] = (),
) -> Certification:
    """Certify the test images of a data set, in full float32 precision.

    Args:
        network: A module that maps images in [0, 1] to logits, or any predictor, such as
            :class:`~robustcompress.export.session.OnnxSession`.
        data: A data set, its name, or its settings.
        certifier: A certifier, its name, or its settings.
        radii: Where to count certified images, in the certifier's norm.
        subject: The network's name in the result.
        limit: Certify the first ``limit`` images only.
        seed: Of every random number.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        keep: A file that gets each certificate as soon as it is made. What it holds already is not made
            again, and is compared: certifier, seed, kind of device, images and ``fingerprint``.
        fingerprint: Tells this network from others where ``keep`` is given, such as the SHA-256 of its file.
        sinks: Receivers of a progress event per image.

    Raises:
        ConfigError: If a setting is wrong, or all images would have to be abstained on.
        DataError: If the images are missing or do not fit the network.
        ModelError: If a logit is not finite.
        StorageError: If ``keep`` cannot be read or written.
    """
    try:
        chosen = Certifier.find(dict(certifier) if isinstance(certifier, Mapping) else certifier)
        data_set = DataSet.find(dict(data) if isinstance(data, Mapping) else data)
    except ValueError as error:
        raise ConfigError(_explain(error)) from error
    check_radii(radii)
    place = resolve_device(device)
    images = data_set.open("test")
    source = as_source(images, batch_size=_BATCH_SIZE, seed=seed, device=place, name="test")
    identity = {
        "certifier": {name: value for name, value in chosen.model_dump().items() if name != "batch_size"},
        "seed": seed,
        "device": place.type,
        "images": images.fingerprint(),
        "network": fingerprint,
    }
    kept = None if keep is None else CertificateFile(keep, identity)
    events, total = Events(sinks), min(limit or len(images), len(images))

    def made(certificate: Certificate) -> None:
        if kept is not None:
            kept.append(certificate)
        events(Progress("certify", str(chosen), certificate.index + 1, total))

    with float32_math("fp32"):
        certificates = certify(
            network,
            source.in_order(),
            certifier=chosen,
            seed=seed,
            device=place,
            limit=limit,
            finished=kept.finished if kept is not None else (),
            on_certificate=made,
        )
    return Certification(
        subject=subject,
        data=images.name,
        norm=chosen.norm,
        certifier=chosen.model_dump(),
        seed=seed,
        device=place.type,
        accuracies=certified_accuracy(certificates, radii),
        abstained=sum(certificate.predicted is None for certificate in certificates),
        certificates=certificates,
    )


def _explain(error: ValueError) -> str:
    """Return the settings that were refused, each with the reason and what came."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines: list[str] = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        path = ".".join(str(part) for part in problem["loc"])
        lines.append(f"{path}: {message}; got {problem['input']!r}" if path else f"{message}.")
    return "\n".join(lines)
