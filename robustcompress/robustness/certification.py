"""Certify images one after another, and count what was certified."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, computed_field
from torch import nn

from robustcompress.errors import ConfigError, DataError
from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.measurement import wilson_interval
from robustcompress.robustness.predictor import Predictor, as_predictor

OnCertificate: TypeAlias = Callable[[Certificate], None]
"""Called with each certificate as soon as it is made."""


class CertifiedAccuracy(BaseModel):
    """How many of ``count`` images are certified to be right as far as ``radius``.

    Attributes:
        radius: In the certifier's norm, pixel scale 0 to 1.
        correct: Images whose right class is certified as far as that.
        count: Images judged, those where the certifier abstained included.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    radius: float = Field(ge=0)
    correct: int = Field(ge=0)
    count: int = Field(gt=0)

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def accuracy(self) -> float:
        """Fraction certified."""
        return self.correct / self.count

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy on further images drawn alike."""
        return wilson_interval(self.correct, self.count)


def certify(
    network: nn.Module | Predictor,
    batches: Batches,
    *,
    certifier: Certifier,
    seed: int = 0,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    finished: Iterable[Certificate] = (),
    on_certificate: OnCertificate | None = None,
) -> tuple[Certificate, ...]:
    """Certify images, each on its own: what one gets does not depend on the others.

    So the shares of the images that several processes certified, put together, are what one process would
    have found, and so is what a process goes on to find after ``finished``.

    Args:
        network: A module (judged in eval mode, put back as it was) or any predictor, such as
            :class:`~robustcompress.export.session.OnnxSession`, which gets its images on ``device``. The
            statement is about what it computes there: kernels of another device round otherwise.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``, always in the same
            order; read once.
        certifier: How to certify.
        seed: Of every random number.
        device: Where noise is drawn and a module is judged.
        limit: Certify the first ``limit`` images only.
        share: (i, n) certifies the i-th of every n images.
        finished: Certificates made before, with the same certifier, seed, network and data: they are
            returned as they are.
        on_certificate: Called with each new certificate, to save it or to show progress.

    Returns:
        One certificate per image of the share, in the order of the data.

    Raises:
        ConfigError: If ``limit`` is not positive or ``share`` is not (i, n) with ``0 <= i < n``.
        DataError: If there are no batches, one is not what it must be, or a finished certificate is of an
            image with another label.
        ModelError: If a logit is not finite.
    """
    if not 0 <= share[0] < share[1]:
        raise ConfigError(f"share must be (i, n) with 0 <= i < n; got {share}.")
    known = {certificate.index: certificate for certificate in finished}
    judged: AbstractContextManager[Predictor] = (
        as_predictor(network, device) if isinstance(network, nn.Module) else nullcontext(network)
    )
    made: list[Certificate] = []
    with judged as predictor:
        for index, image, label in _images(batches, device, limit):
            if index % share[1] != share[0]:
                continue
            if index in known:
                made.append(_same_image(known[index], label))
                continue
            certificate = certifier.certify(predictor, image, label, index=index, seed=seed)
            made.append(certificate)
            if on_certificate is not None:
                on_certificate(certificate)
    return tuple(made)


def certified_accuracy(
    certificates: Sequence[Certificate], radii: Sequence[float]
) -> tuple[CertifiedAccuracy, ...]:
    """Return the fraction of images certified right at each radius; abstentions count as wrong.

    Args:
        certificates: One per image, in any order.
        radii: In the certifier's norm, 0 or more. At 0 it is the accuracy of what is certified at all.

    Raises:
        DataError: If there are no certificates, or two are of the same image.
        ConfigError: If a radius is negative or not a number.
    """
    if not certificates:
        raise DataError("expected certificates to count; got none. Certify at least one image.")
    if len({certificate.index for certificate in certificates}) < len(certificates):
        raise DataError("expected one certificate per image; got two of the same. Put each share in once.")
    check_radii(radii)
    return tuple(
        CertifiedAccuracy(
            radius=radius,
            correct=sum(certificate.holds(radius) for certificate in certificates),
            count=len(certificates),
        )
        for radius in radii
    )


def check_radii(radii: Sequence[float]) -> None:
    """Check radii before the long work, not after it.

    Raises:
        ConfigError: If one is negative or not a number.
    """
    for radius in radii:
        if not radius >= 0:
            raise ConfigError(f"radii must be 0 or more; got {radius}.")


def _images(
    batches: Batches, device: torch.device | str, limit: int | None
) -> Iterator[tuple[int, torch.Tensor, int]]:
    index = 0
    for batch in checked_batches(batches, device=device, limit=limit):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            yield index, image, label
            index += 1


def _same_image(certificate: Certificate, label: int) -> Certificate:
    if certificate.label != label:
        raise DataError(
            f"image {certificate.index} has label {label}, but its finished certificate says "
            f"{certificate.label}. Go on with the same data in the same order, or begin anew."
        )
    return certificate
