"""What the adversary may do: a norm and how far."""

from typing import Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from robustcompress.fractions import Number

Norm: TypeAlias = Literal["linf", "l2"]


class Threat(BaseModel):
    """All images within ``eps`` of the original in ``norm`` that are still images.

    Attributes:
        norm: ``linf`` (each pixel) or ``l2`` (Euclidean length over the whole image).
        eps: Radius on the pixel scale 0 to 1; may be written ``8/255``.
        lower: Smallest pixel value.
        upper: Largest pixel value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    norm: Norm = "linf"
    eps: Number = Field(ge=0, allow_inf_nan=False)
    lower: Number = Field(default=0.0, allow_inf_nan=False)
    upper: Number = Field(default=1.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _range_holds_something(self) -> Self:
        if not self.lower < self.upper:
            raise ValueError(f"lower must be below upper; got lower {self.lower} and upper {self.upper}")
        return self

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Return an allowed image near ``adversarial``: pulled into the ball, then into the pixel range.

        For Linf it is the nearest allowed image. For L2 it is one of them: clipping to the pixel range
        after the ball never leaves the ball, because ``images`` lie in the range themselves.
        """
        if self.norm == "linf":
            low, high = self.box(images)
            return adversarial.clamp(low, high)
        delta = adversarial - images
        shrink = (self.eps / self.lengths(delta).clamp_min(1e-12)).clamp_max(1.0)
        return (images + delta * shrink).clamp(self.lower, self.upper)

    def box(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that each pixel may take within ``eps``."""
        return (images - self.eps).clamp_min(self.lower), (images + self.eps).clamp_max(self.upper)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of unit length in ``norm`` that climbs fastest along ``gradient``.

        The gradient's scale does not matter, however small: a confident network's gradient of 1e-30 still
        gives a direction. Where it is zero the direction is zero.
        """
        if self.norm == "linf":
            return gradient.sign()
        # Squares of small numbers underflow: bring the largest entry to 1 before taking the length.
        largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / largest.reshape(-1, *[1] * (gradient.ndim - 1))
        return scaled.div_(self.lengths(scaled).clamp_min(1e-12))

    def random_point(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a point drawn uniformly from the ball around each image, clipped to the pixel range."""
        return (images + self.random_offset(images, generator)).clamp(self.lower, self.upper)

    def random_offset(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return points drawn uniformly from the ball around zero, shaped and placed ``like`` images."""
        shape, device, dtype = like.shape, like.device, like.dtype
        if self.norm == "linf":
            noise = torch.rand(shape, generator=generator, device=device, dtype=dtype)
            return (2 * noise - 1) * self.eps
        delta = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        radius = torch.rand(len(like), generator=generator, device=device, dtype=dtype)
        # The ball's volume within r grows as r**count, so this radius is uniform over volume.
        radius = radius ** (1 / like[0].numel()) * self.eps
        return self.steepest(delta) * radius.reshape(-1, *[1] * (like.ndim - 1))

    def lengths(self, delta: Tensor) -> Tensor:
        """Return each row's length in ``norm``; ``[batch, 1, ...]``, ready to divide ``delta`` by."""
        flat = delta.flatten(1)
        length = flat.abs().amax(1) if self.norm == "linf" else flat.norm(dim=1)
        return length.reshape(-1, *[1] * (delta.ndim - 1))

    def distances(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Return how far each image was moved, in ``norm``; float ``[batch]``."""
        return self.lengths(adversarial - images).flatten()

    def contains(self, adversarial: Tensor, images: Tensor, *, tolerance: float = 1e-6) -> Tensor:
        """Return which rows lie in the threat: bool ``[batch]``, false where a pixel is not a number.

        Args:
            adversarial: float ``[batch, ...]``.
            images: The originals, of the same shape.
            tolerance: Allowed beyond ``eps`` for rounding. The pixel range is kept exactly.
        """
        near = self.distances(adversarial.double(), images.double()) <= self.eps + tolerance
        flat = adversarial.flatten(1)
        return near & (flat.amin(1) >= self.lower) & (flat.amax(1) <= self.upper)

    def __str__(self) -> str:
        return f"{'Linf' if self.norm == 'linf' else 'L2'} eps {self.eps:.6g}"
