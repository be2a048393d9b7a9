"""Certify by bounds: which of some radii can be proven, image by image, within a given memory.

Shapes: B batch, C classes.
"""

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from robustcompress.errors import ConfigError, ModelError
from robustcompress.fractions import Number
from robustcompress.robustness.bounds.interval import propagate
from robustcompress.robustness.bounds.tracing import TracedNetwork, trace_network
from robustcompress.robustness.box_bounds import INTERVAL, Bound, BoxBounds
from robustcompress.robustness.certifiers import Certificate, Certifier, Subject
from robustcompress.robustness.predictor import finite_logits
from robustcompress.robustness.threat import Norm

_ROUNDING = 1e-4
"""What rounding may make of logits where no slack says so, in units of the largest logit."""


class BoundCertifier(Certifier, ABC):
    """Proves for each image the largest of some Linf radii within which the predicted class cannot change.

    All images within a radius that are still images, with pixels in [0, 1], form a box. Bounds from below of
    the margins between the predicted class and every other one, each above ``slack``, prove that class for
    the whole box. The class is what the predictor itself says; it may be the wrong one: then the image is
    proven to be misclassified as far as that. An image of which no radius was proven is abstained on.

    A proof for a radius covers every smaller one, for the smaller box lies in the larger: so the radii are
    searched by bisection. Each radius tested is tested as it was given; one between two of them was not
    tested. What CROWN finds need not shrink as the radius grows, so that bisection may miss a proof, never
    claim one.

    The bounds are computed in ``dtype`` and are statements about exact arithmetic. The network itself rounds,
    to float32 as a rule. ``slack`` leaves room for that, and is compared with what rounding does to the
    image itself: larger differences between the predictor and its structure stop the certification. Box ends
    include what rounding to the images' type makes of them.

    Attributes:
        radii: Ascending, pixel scale 0 to 1; may be written ``8/255``.
        slack: How far above zero a bound must lie, in units of the image's largest logit (1 if that is
            smaller). At 0 the statement is about exact arithmetic alone.
        dtype: Of the bounds. ``float32`` takes half the time and memory, and rounds the bounds as well.
        batch_size: Images that are searched together.
        memory_mib: About how much memory the bounds may take besides the weights. It decides how many images
            and linear functions are computed at once.
    """

    norm: ClassVar[Norm] = "linf"
    needs_structure: ClassVar[bool] = True
    speed_settings: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory_mib"})
    bounds: ClassVar[tuple[Bound, ...]]
    """Cheapest first; each is asked about the images that those before it left open."""

    radii: tuple[Number, ...] = Field(min_length=1)
    slack: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    dtype: Literal["float64", "float32"] = "float64"
    batch_size: int = Field(default=64, ge=1)
    memory_mib: int = Field(default=1024, ge=1)

    @field_validator("radii")
    @classmethod
    def _ascend(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        for before, radius in zip((0.0, *radii), radii, strict=False):
            if not before < radius < float("inf"):
                raise ValueError("radii must be finite, above 0 and ascending, each once")
        return radii

    def asked_of(self, boxes: BoxBounds) -> tuple[Bound, ...]:
        """Return the bounds to ask about the network of ``boxes``; all, as a rule."""
        return self.bounds

    @property
    def images_at_once(self) -> int:
        return self.batch_size

    @property
    def usual_radii(self) -> tuple[float, ...]:
        """Those that are tested."""
        return self.radii

    def certify(
        self, subject: Subject, images: Tensor, labels: Tensor, *, indices: Sequence[int], seed: int
    ) -> list[Certificate]:
        if subject.network is None:
            raise ConfigError(
                f"{self.kind} needs the network's operations, and this predictor only gives logits. Pass "
                "structure=, a module that computes the same, or certify with smoothing."
            )
        where = f"images {indices[0]} to {indices[-1]}"
        logits_BC = finite_logits(subject.predictor, images, labels, where=where)
        with torch.no_grad():
            proof = _Proof(self, trace_network(subject.network), images, logits_BC.to(images.device))
            proof.compare(indices)
            levels = proof.search()
        return [
            Certificate(
                index=index,
                label=label,
                predicted=None if level < 0 else found,
                radius=0.0 if level < 0 else self.radii[level],
                counts={"class": found, **asked},
            )
            for index, label, found, level, asked in zip(
                indices, labels.tolist(), proof.classes.tolist(), levels, proof.asked(), strict=True
            )
        ]

    def __str__(self) -> str:
        return self.kind.replace("_", "-")


class _Proof:
    """Boxes of growing radius around a few images, and what is known about each."""

    def __init__(
        self, settings: BoundCertifier, network: TracedNetwork, images: Tensor, logits_BC: Tensor
    ) -> None:
        self.settings = settings
        self.network = network
        self.images = images
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.logits_BC = logits_BC.to(self.dtype)
        self.classes = logits_BC.argmax(1)
        unit_B1 = self.logits_BC.abs().amax(1, keepdim=True).clamp_min(1)
        self.floor_B1 = settings.slack * unit_B1
        self.rounding_B = (settings.slack or _ROUNDING) * unit_B1[:, 0]
        self.counts_BK = torch.zeros(len(images), len(settings.bounds), dtype=torch.int64)
        self.boxes = BoxBounds(
            network, images[:1], logits_BC.shape[1], dtype=self.dtype, memory_mib=settings.memory_mib
        )
        self.bounds = settings.asked_of(self.boxes)

    def asked(self) -> list[dict[str, int]]:
        """Return for each image at how many radii each bound was computed."""
        names = [bound.name for bound in self.settings.bounds]
        return [dict(zip(names, row, strict=True)) for row in self.counts_BK.tolist()]

    def compare(self, indices: Sequence[int]) -> None:
        """Check that the structure computes what the predictor does, up to rounding.

        Raises:
            ModelError: If not.
        """
        everything = torch.arange(len(self.images), device=self.images.device)
        for part in everything.split(self.boxes.at_once(INTERVAL)[0]):
            points = self.images[part].to(self.dtype)
            exact_BC = propagate(self.network, {}, points, points).logits.centre
            if exact_BC.shape != self.logits_BC[part].shape:
                raise ModelError(
                    f"the predictor gives {self.logits_BC.shape[1]} classes and its structure "
                    f"{exact_BC.shape[1]}: it is the structure of another network."
                )
            error_BC = self.logits_BC[part] - exact_BC
            error_B = (error_BC.gather(1, self.classes[part, None]) - error_BC).abs().amax(1)
            # Not "greater": what is no number does not agree.
            off_B = ~(error_B <= self.rounding_B[part])
            if bool(off_B.any()):
                worst = int(off_B.nonzero()[0])
                raise ModelError(
                    f"image {indices[int(part[worst])]}: the predictor and its structure, computed in "
                    f"{self.settings.dtype}, differ by {float(error_B[worst]):.3g} in a margin; "
                    f"{float(self.rounding_B[part[worst]]):.3g} is allowed here. If they are the same "
                    f"network, rounding does this: raise slack (now {self.settings.slack:g}). If not, pass "
                    "the structure of this network."
                )

    def search(self) -> list[int]:
        """Return for each image the index of the largest radius that was proven; -1 if none was."""
        count = len(self.images)
        proven = torch.full((count,), -1)
        refuted = torch.full((count,), len(self.settings.radii))
        while bool((open_ := proven + 1 < refuted).any()):
            middle = (proven + refuted) // 2
            for level in sorted(set(middle[open_].tolist())):
                tested = (open_ & (middle == level)).nonzero().flatten()
                success = self._proves(tested, self.settings.radii[level])
                proven[tested[success]] = level
                refuted[tested[~success]] = level
        return [int(level) for level in proven]

    def _proves(self, which: Tensor, radius: float) -> Tensor:
        """Return of which images the class is proven within ``radius``; bool, on the CPU."""
        margins = torch.full_like(self.logits_BC[which], -torch.inf)
        left = torch.arange(len(which))
        for bound in self.bounds:
            if len(left) == 0:
                break
            open_ = which[left]
            self.counts_BK[open_, self.settings.bounds.index(bound)] += 1
            found = self.boxes.margins(bound, self.images[open_], self.classes[open_], radius)
            margins[left] = margins[left].maximum(found)
            left = (~self._above(margins, which)).nonzero().flatten()
        return self._above(margins, which)

    def _above(self, margins_BC: Tensor, which: Tensor) -> Tensor:
        """Return where every margin but the class's own is above its floor."""
        others = margins_BC.scatter(1, self.classes[which, None], torch.inf)
        return (others > self.floor_B1[which]).all(1).cpu()
