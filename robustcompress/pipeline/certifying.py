"""Certify a network, or a file made from it, on the test images of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.events import Events, Progress, Sink
from robustcompress.pipeline.certificate_file import CertificateFile, read_certificates, united
from robustcompress.pipeline.context import resolve_device
from robustcompress.robustness.certification import (
    CertifiedAccuracy,
    certified_accuracy,
    certify,
    check_radii,
    check_share,
)
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.threat import Norm
from robustcompress.training.loop import float32_math
from robustcompress.training.sources import as_source
from robustcompress.zoo.datasets import DataSet

_BATCH_SIZE = 64

Settings: TypeAlias = dict[str, str | int | float | bool | tuple[float, ...] | None]
"""What defines a certifier, as a result records it."""


class Certification(BaseModel):
    """What was proven about a data set, and all that is needed to prove it again.

    Attributes:
        subject: What was certified: the name of an artifact's folder or of an exported file.
        data: The images, with their subset.
        norm: In which radii are measured.
        certifier: Its settings.
        seed: Of every random number.
        device: Where it was computed; noise is drawn otherwise, and sums are rounded otherwise, elsewhere.
        share: (i, n): the i-th of every n images.
        accuracies: Certified accuracy at each radius asked for.
        clean: Images of which the network's own class is right; ``None`` where that is not what is certified,
            as under randomized smoothing.
        abstained: Images about which nothing was proven.
        certificates: One per image of the share, in the order of the data.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    subject: str
    data: str
    norm: Norm
    certifier: Settings
    seed: int
    device: str
    share: tuple[int, int] = (0, 1)
    accuracies: tuple[CertifiedAccuracy, ...]
    clean: int | None = None
    abstained: int
    certificates: tuple[Certificate, ...]


def certify_data_set(
    network: nn.Module | Predictor,
    data: DataSet | str | Mapping[str, object],
    *,
    certifier: Certifier | str | Mapping[str, object],
    radii: Sequence[float] | None = None,
    structure: nn.Module | None = None,
    subject: str = "network",
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    seed: int = 0,
    device: str = "auto",
    keep: Path | None = None,
    merge: Sequence[Path] = (),
    fingerprint: str = "",
    sinks: Sequence[Sink] = (),
) -> Certification:
    """Certify the test images of a data set, in full float32 precision.

    Args:
        network: A module that maps images in [0, 1] to logits, or any predictor, such as
            :class:`~robustcompress.export.session.OnnxSession`.
        data: A data set, its name, or its settings.
        certifier: A certifier, its name, or its settings.
        radii: Where to count certified images, in the certifier's norm; by default those that it tests, or
            some multiples of sigma.
        structure: A module that computes what ``network`` does, for certifiers that look into it where
            ``network`` is no module.
        subject: The network's name in the result.
        limit: Certify the first ``limit`` images only.
        share: (i, n) certifies the i-th of every n images.
        seed: Of every random number.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        keep: A file that gets each certificate as soon as it is made. What it holds already is not made
            again, and is compared: certifier, seed, kind of device, images and ``fingerprint``.
        merge: Files that other processes kept, of other shares for example: what they hold is not made again,
            and is compared likewise.
        fingerprint: Tells this network from others where files are kept or merged, such as the SHA-256 of its
            file.
        sinks: Receivers of a progress event per image.

    Raises:
        ConfigError: If a setting is wrong, all images would have to be abstained on, or the certifier needs a
            structure and there is none.
        DataError: If the images are missing or do not fit the network, or files contradict each other.
        ModelError: If a logit is not finite, the certifier does not know an operation of the network, or
            ``structure`` is not that of ``network``.
        StorageError: If a file of certificates cannot be read or written.
    """
    try:
        chosen = Certifier.find(dict(certifier) if isinstance(certifier, Mapping) else certifier)
        data_set = DataSet.find(dict(data) if isinstance(data, Mapping) else data)
    except ValueError as error:
        raise ConfigError(_explain(error)) from error
    counted = chosen.usual_radii if radii is None else radii
    check_radii(counted)
    check_share(share)
    place = resolve_device(device)
    images = data_set.open("test")
    source = as_source(images, batch_size=_BATCH_SIZE, seed=seed, device=place, name="test")
    identity = {
        "certifier": chosen.model_dump(mode="json", exclude=set(chosen.speed_settings)),
        "seed": seed,
        "device": place.type,
        "images": images.fingerprint(),
        "network": fingerprint,
    }
    known = [read_certificates(path, identity) for path in merge]
    kept = None if keep is None else CertificateFile(keep, identity)
    finished = united([*known, kept.finished if kept is not None else ()])
    if kept is not None:
        _complete(kept, finished)
    mine = range(share[0], min(limit or len(images), len(images)), share[1])
    events, done = Events(sinks), sum(certificate.index in mine for certificate in finished)

    def made(certificate: Certificate) -> None:
        nonlocal done
        if kept is not None:
            kept.append(certificate)
        done += 1
        events(Progress("certify", str(chosen), done, len(mine)))

    with float32_math("fp32"):
        certificates = certify(
            network,
            source.in_order(),
            certifier=chosen,
            structure=structure,
            seed=seed,
            device=place,
            limit=limit,
            share=share,
            finished=finished,
            on_certificate=made,
        )
    classes = [certificate.counts.get("class") for certificate in certificates]
    return Certification(
        subject=subject,
        data=images.name,
        norm=chosen.norm,
        certifier=chosen.model_dump(),
        seed=seed,
        device=place.type,
        share=share,
        accuracies=certified_accuracy(certificates, counted),
        clean=None if None in classes else sum(item.counts["class"] == item.label for item in certificates),
        abstained=sum(certificate.predicted is None for certificate in certificates),
        certificates=certificates,
    )


def _complete(kept: CertificateFile, finished: Sequence[Certificate]) -> None:
    """Add to a file what other files hold."""
    held = {certificate.index for certificate in kept.finished}
    for certificate in finished:
        if certificate.index not in held:
            kept.append(certificate)


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
