"""Certify images, each on its own, and count what was certified."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from pydantic import Field
from torch import nn

from robustcompress.errors import ConfigError, DataError
from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.certifiers import Certificate, Certifier, Subject
from robustcompress.robustness.measurement import Count
from robustcompress.robustness.predictor import Predictor, as_predictor

OnCertificate: TypeAlias = Callable[[Certificate], None]
"""Called with each certificate as soon as it is made."""


class CertifiedAccuracy(Count):
    """How many of ``count`` images are certified to be right as far as ``radius``.

    ``correct`` counts images whose right class is certified as far as that, ``count`` those where the
    certifier abstained too.

    Attributes:
        radius: In the certifier's norm, pixel scale 0 to 1.
    """

    radius: float = Field(ge=0)


def certify(
    network: nn.Module | Predictor,
    batches: Batches,
    *,
    certifier: Certifier,
    structure: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    finished: Iterable[Certificate] = (),
    on_certificate: OnCertificate | None = None,
) -> tuple[Certificate, ...]:
    """Certify images, each on its own: what one gets does not depend on the others.

    So the shares of the images that several processes certified, put together, are what one process would
    have found, and so is what a process goes on to find after ``finished``. It is exactly so where a logit
    and a bound of an image do not depend on its batch; kernels may round otherwise for batches of another
    size, which decides what is equal but for rounding.

    Args:
        network: A module (judged in eval mode, put back as it was) or any predictor, such as
            :class:`~robustcompress.export.session.OnnxSession`, which gets its images on ``device``. The
            statement is about what it computes there: kernels of another device round otherwise.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``, always in the same
            order; read once.
        certifier: How to certify.
        structure: A module that computes what ``network`` does, for certifiers that look into it where
            ``network`` is no module, such as an exported file. It is compared with it on every image.
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
        ConfigError: If ``limit`` is not positive or ``share`` is not (i, n) with ``0 <= i < n``, or if the
            certifier needs a structure and there is none.
        DataError: If there are no batches, one is not what it must be, or a finished certificate is of an
            image with another label.
        ModelError: If a logit is not finite, or the certifier does not know an operation of the network, or
            ``structure`` is not that of ``network``.
    """
    check_share(share)
    known = {certificate.index: certificate for certificate in finished}
    made: dict[int, Certificate] = {}
    with _subject(network, structure, certifier, device) as subject:

        def judge(group: _Group) -> None:
            pixels, labels = torch.stack(group.images), torch.tensor(group.labels, device=device)
            for certificate in certifier.certify(subject, pixels, labels, indices=group.indices, seed=seed):
                made[certificate.index] = certificate
                if on_certificate is not None:
                    on_certificate(certificate)

        group = _Group()
        for index, image, label in _images(batches, device, limit):
            if index % share[1] != share[0]:
                continue
            if index in known:
                made[index] = _same_image(known[index], label)
                continue
            if len(group.indices) == certifier.images_at_once or not group.fits(image):
                judge(group)
                group = _Group()
            group.add(index, image, label)
        if group.indices:
            judge(group)
    return tuple(made[index] for index in sorted(made))


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


def check_share(share: tuple[int, int]) -> None:
    """Check which images are to be certified.

    Raises:
        ConfigError: If ``share`` is not (i, n) with ``0 <= i < n``.
    """
    if not 0 <= share[0] < share[1]:
        raise ConfigError(f"share must be (i, n) with 0 <= i < n; got {share}.")


@dataclass
class _Group:
    """Images that are certified together."""

    indices: list[int] = field(default_factory=list[int])
    images: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    labels: list[int] = field(default_factory=list[int])

    def fits(self, image: torch.Tensor) -> bool:
        return not self.images or (image.shape, image.dtype) == (self.images[0].shape, self.images[0].dtype)

    def add(self, index: int, image: torch.Tensor, label: int) -> None:
        self.indices.append(index)
        self.images.append(image)
        self.labels.append(label)


@contextmanager
def _subject(
    network: nn.Module | Predictor,
    structure: nn.Module | None,
    certifier: Certifier,
    device: torch.device | str,
) -> Generator[Subject, None, None]:
    with ExitStack() as stack:

        def served(module: nn.Module) -> nn.Module:
            return stack.enter_context(as_predictor(module, device))

        predictor = served(network) if isinstance(network, nn.Module) else network
        if not certifier.needs_structure:
            yield Subject(predictor)
        elif structure is not None:
            yield Subject(predictor, served(structure))
        else:
            yield Subject(predictor, predictor if isinstance(predictor, nn.Module) else None)


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
