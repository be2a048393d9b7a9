"""Square Attack: random search with square windows, which asks for nothing but logits.

Shapes: B batch, R rows of it that still stand, C channels, H height, W width.
"""

import bisect
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.auto_pgd import Findings
from robustcompress.robustness.losses import margin
from robustcompress.robustness.squares import Window, bumpy_tiles, tile_counts, two_bumps, window_size
from robustcompress.robustness.threat import Threat

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULED = 10_000
_SIGNS_AT_ONCE = 64


class Square(Attack):
    """Change one window at a time, and keep the change wherever the margin of the right class falls.

    It starts from the ball's border: for Linf stripes one pixel wide, for L2 a pavement of bumps. Each query
    then proposes a window at a random place. For Linf its pixels move to the ball's border, each channel up
    or down. For L2 a second window is emptied, and what length that frees goes into the first one, together
    with two bumps, a hill beside a valley. Windows shrink as queries go by. Images leave the batch as soon as
    they are broken; the others come back as the best point found.

    Inputs other than ``[batch, channels, height, width]`` are taken for images of a single row: their windows
    are runs of neighbouring features, as long as the square would be large.

    Attributes:
        queries: Images that one attempt shows to the network, the start included.
        restarts: Attempts, each on the points that are still standing.
        p_init: Share of the pixels that the first windows cover.
        rescale_schedule: Whether the windows shrink as fast relative to ``queries`` as the paper has them
            do in 10,000; otherwise after the same number of queries.

    Source:
        Andriushchenko et al. 2019, https://arxiv.org/abs/1912.00049, Algorithms 1 to 3, with the margin loss.
        Differs: as in AutoAttack's code, one place is drawn for the whole batch at a time, and windows shrink
        by the number of queries. Signs are drawn for each image. Every place can be chosen; both the
        authors' codes leave out the last row and column. An image too narrow for the square gets a
        rectangle that covers as much.
    """

    needs_gradient: ClassVar[bool] = False
    queries: int = Field(default=5000, ge=1)
    restarts: int = Field(default=1, ge=1)
    p_init: float = Field(default=0.8, gt=0, le=1)
    rescale_schedule: bool = False

    @torch.no_grad()
    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        images = images.detach()
        findings = Findings.begin(images, logits_of(images).argmax(1) == labels)
        for _ in range(self.restarts):
            if not bool(findings.standing.any()):
                break
            self._attempt(logits_of, images, labels, threat, generator, findings)
        return findings.images

    def _attempt(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        generator: torch.Generator,
        findings: Findings,
    ) -> None:
        """Attack once what still stands, and note what is found."""
        images_BCHW = images if images.ndim == 4 else images.reshape(len(images), 1, 1, -1)
        # Signs are drawn for the whole batch: what one image gets does not depend on which others stand.
        chances = torch.rand(self.queries, 5, generator=generator, device=images.device).tolist()
        candidates = _start(images_BCHW, threat, generator)
        rows = findings.standing.nonzero().flatten()
        candidates, originals, own = candidates[rows], images_BCHW[rows], labels[rows]
        best, highest = candidates.clone(), torch.full_like(originals[:, 0, 0, 0], float("-inf"))
        proposals = _Proposals(threat)
        signs_QBC = images
        for query in range(self.queries):
            if query % _SIGNS_AT_ONCE == 0:
                drawn_QBC = _signs((_SIGNS_AT_ONCE, *images_BCHW.shape[:2]), images, generator)
                signs_QBC = drawn_QBC[:, rows]
            if query > 0:
                signs_RC = signs_QBC[query % _SIGNS_AT_ONCE]
                candidates = proposals.draw(best, originals, signs_RC, self._share(query - 1), chances[query])
            logits = logits_of(candidates.reshape(-1, *images.shape[1:]))
            margins = margin(logits, own)
            better = ~(margins <= highest)  # not a number is caught below
            if not bool(better.any()):
                continue
            if bool(margins.isnan().any()):
                raise ModelError(
                    f"expected logits that are numbers; {int(margins.isnan().sum())} of {len(margins)} "
                    "images gave NaN, and no search can compare them. Look for a root, a logarithm or a "
                    "division at zero."
                )
            changed = better.nonzero().flatten()
            best[changed] = candidates[changed]
            highest = torch.maximum(highest, margins)
            wrong = better & (logits.argmax(1) != own)
            if bool(wrong.any()):
                findings.note_broken(rows[wrong], best[wrong].reshape(-1, *images.shape[1:]))
                keep = ~wrong
                rows, originals, own = rows[keep], originals[keep], own[keep]
                best, highest, signs_QBC = best[keep], highest[keep], signs_QBC[:, keep]
                if len(rows) == 0:
                    return
        findings.note_highest(rows, best.reshape(-1, *images.shape[1:]), highest)

    def _share(self, query: int) -> float:
        """Return what share of the pixels the window of a query covers."""
        if self.rescale_schedule:
            query = query * _SCHEDULED // self.queries
        return self.p_init * 0.5 ** bisect.bisect_left(_HALVINGS, query)

    def __str__(self) -> str:
        return f"Square-{self.queries}x{self.restarts}"


class _Proposals:
    """Changed images within the threat."""

    def __init__(self, threat: Threat) -> None:
        self._threat = threat
        self._bumps: dict[tuple[int, int, bool], Tensor] = {}

    def draw(
        self, best: Tensor, images: Tensor, signs_RC: Tensor, share: float, chances: list[float]
    ) -> Tensor:
        """Return ``best`` (all ``[rows, C, H, W]``) changed in one window; ``best`` itself stays."""
        image_size = (images.shape[2], images.shape[3])
        signs = signs_RC[:, :, None, None]
        if self._threat.norm == "linf":
            window = Window.at((chances[0], chances[1]), window_size(share, image_size), image_size)
            patch = window.of(images) + signs * self._threat.eps
            changed = best.clone()
            window.of(changed).copy_(patch.clamp_(self._threat.lower, self._threat.upper))
            return changed
        size = window_size(share, image_size, least=3, odd=True)
        target = Window.at((chances[0], chances[1]), size, image_size)
        emptied = Window.at((chances[2], chances[3]), size, image_size)
        bumps = self._bumps_like(images, size, side_by_side=chances[4] < 0.5)
        return self._move_length(best, images, target, emptied, bumps * signs)

    def _move_length(
        self, best: Tensor, images: Tensor, target: Window, emptied: Window, bumps: Tensor
    ) -> Tensor:
        """Return images where the length of both windows, and what is left of eps, went into ``target``."""
        delta = best - images
        old = target.of(delta)
        old_lengths = _squares(old)
        freed = old_lengths + _squares(emptied.of(delta)) - _squares(emptied.meet(target).of(delta))
        left = (self._threat.eps**2 - self._threat.lengths(delta) ** 2).clamp_min_(0)
        patch = bumps + old / (old_lengths.sqrt() + 1e-12)
        patch *= (left / images.shape[1] + freed.clamp_min_(0)).sqrt_() / (_squares(patch).sqrt_() + 1e-12)
        emptied.of(delta).zero_()
        target.of(delta).copy_(patch)
        return _at_length(images, delta, self._threat)

    def _bumps_like(self, images: Tensor, size: tuple[int, int], *, side_by_side: bool) -> Tensor:
        key = (*size, side_by_side)
        if key not in self._bumps:
            self._bumps[key] = two_bumps(*size, side_by_side=side_by_side).to(images)
        return self._bumps[key]


def _start(images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Return the first candidates: stripes for Linf, a pavement of bumps for L2."""
    batch, channels, height, width = images.shape
    if threat.norm == "linf":
        stripes = _signs((batch, channels, 1, width), images, generator)
        return (images + stripes * threat.eps).clamp_(threat.lower, threat.upper)
    counts = tile_counts((height, width))
    signs = _signs((batch, channels, *counts), images, generator)
    cuts = torch.rand(counts, generator=generator, device=images.device) < 0.5
    return _at_length(images, bumpy_tiles((height, width), signs, cuts.tolist()), threat)


def _at_length(images: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    """Return the images moved along ``delta`` (overwritten) to the ball's border, clipped to the pixels."""
    scale = threat.eps / threat.lengths(delta).clamp_min_(1e-12)
    return delta.mul_(scale).add_(images).clamp_(threat.lower, threat.upper)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=generator, device=like.device, dtype=torch.int8)
    return drawn.to(like.dtype).mul_(2).sub_(1)


def _squares(part: Tensor) -> Tensor:
    return part.square().sum((2, 3), keepdim=True)
