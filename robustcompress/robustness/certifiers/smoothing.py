"""Randomized smoothing: what a network says most often under Gaussian noise, and how far that holds."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.binomial import lower_bound
from robustcompress.robustness.certifiers import Certificate, Certifier, Subject
from robustcompress.robustness.predictor import Predictor, predicted_classes
from robustcompress.robustness.threat import Norm
from robustcompress.seeding import generator_for

_CHUNK = 128
"""Draws that share a seed. Another number would give other draws: it is no setting of speed."""


class Smoothing(Certifier):
    """Certifies the smoothed network: the class that the network gives most often to ``x + sigma n``.

    A first sample of ``n0`` draws guesses that class; a second one of ``n`` draws bounds its probability
    from below. Where the bound is above one half, the smoothed network says that class everywhere within
    ``sigma * Phi^-1(bound)`` in L2, unless the second sample was one of the ``alpha`` in all that mislead;
    otherwise it abstains. What is certified is the smoothed network, not the network itself.

    Noise is drawn in chunks of 128, each seeded by the seed, the image's index, the sample and the chunk's
    number. So an image's noise is the same, bit for bit, whatever ``batch_size`` is and whichever images
    were certified before; it differs between CPU and GPU. Counts are integers. They too are the same for
    every ``batch_size`` of a predictor whose logits for an image do not depend on its batch; kernels may
    round otherwise for batches of another size, which decides draws whose two best logits are equal but
    for rounding.

    Noisy images are not clipped to the pixel range: the theorem is about Gaussian noise.

    Attributes:
        sigma: Standard deviation of the noise, pixel scale 0 to 1; that of training, as a rule.
        n0: Draws that guess the class.
        n: Draws that bound its probability.
        alpha: Probability, for each image, that what is certified is wrong.
        batch_size: Noisy images that the predictor gets at once.

    Source:
        Cohen et al. 2019, https://arxiv.org/abs/1902.02918, theorem 1 and section 3.2.2 (CERTIFY).
        Differs: settings under which every image must abstain are refused.
    """

    norm: ClassVar[Norm] = "l2"
    sigma: Number = Field(default=0.25, gt=0, allow_inf_nan=False)
    n0: int = Field(default=100, ge=1)
    n: int = Field(default=100_000, ge=1)
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    batch_size: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _can_certify(self) -> Self:
        if lower_bound(self.n, self.n, alpha=self.alpha) <= 0.5:
            needed = math.floor(-math.log2(self.alpha)) + 1
            raise ValueError(
                f"alpha {self.alpha:g} needs n of {needed} or more; got {self.n}. With fewer every image "
                "must abstain, even if all draws agree"
            )
        return self

    @property
    def largest_radius(self) -> float:
        """The radius if all draws agree: no image gets a larger one."""
        return self._radius(self.n)

    @property
    def usual_radii(self) -> tuple[float, ...]:
        """Some multiples of ``sigma``: at 0 all that is certified counts."""
        return tuple(factor * self.sigma for factor in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0))

    def certify(
        self, subject: Subject, images: Tensor, labels: Tensor, *, indices: Sequence[int], seed: int
    ) -> list[Certificate]:
        return [
            self._certify(subject.predictor, image, label, index, seed)
            for image, label, index in zip(images, labels.tolist(), indices, strict=True)
        ]

    def _certify(self, predictor: Predictor, image: Tensor, label: int, index: int, seed: int) -> Certificate:
        guesses = self._classes(predictor, image, label, self.n0, index, seed, "guess")
        # The first of a tie, as argmax: the guess may be anything that does not depend on the second sample.
        guess = int(torch.cat(list(guesses)).bincount().argmax())
        hits = 0
        for found in self._classes(predictor, image, label, self.n, index, seed, "bound"):
            hits += int((found == guess).sum())
        radius = self._radius(hits)
        return Certificate(
            index=index,
            label=label,
            predicted=guess if radius > 0 else None,
            radius=radius,
            counts={"guess": guess, "hits": hits, "draws": self.n},
        )

    def _radius(self, hits: int) -> float:
        """Return the radius that ``hits`` of ``n`` draws certify; 0.0 if they do not."""
        bound = lower_bound(hits, self.n, alpha=self.alpha)
        return self.sigma * NormalDist().inv_cdf(bound) if bound > 0.5 else 0.0

    def _classes(
        self, predictor: Predictor, image: Tensor, label: int, draws: int, index: int, seed: int, sample: str
    ) -> Iterator[Tensor]:
        """Yield the classes of ``draws`` noisy images, int64 ``[batch]``, batch by batch."""
        labels = torch.full((self.batch_size,), label, device=image.device)
        where = f"image {index} with noise {self.sigma:g}"
        for noise in self._noise(image, draws, index, seed, sample):
            noisy = noise.mul_(self.sigma).add_(image)
            yield predicted_classes(predictor, noisy, labels[: len(noisy)], where=where)

    def _noise(self, image: Tensor, draws: int, index: int, seed: int, sample: str) -> Iterator[Tensor]:
        """Yield standard normal noise for ``draws`` images, ``batch_size`` at once and the rest at last."""
        waiting: list[Tensor] = []
        count = 0
        for chunk in range(-(-draws // _CHUNK)):
            generator = generator_for(image.device, seed, "smoothing", index, sample, chunk)
            # A whole chunk even where fewer draws are left: how a device fills a tensor depends on its size.
            drawn = torch.randn(
                (_CHUNK, *image.shape), generator=generator, device=image.device, dtype=image.dtype
            )
            drawn = drawn[: draws - chunk * _CHUNK]
            waiting.append(drawn)
            count += len(drawn)
            while count >= self.batch_size:
                joined = torch.cat(waiting)
                yield joined[: self.batch_size]
                waiting = [joined[self.batch_size :]]
                count -= self.batch_size
        if count:
            yield torch.cat(waiting)

    def __str__(self) -> str:
        return f"smoothing {self.sigma:g}"
