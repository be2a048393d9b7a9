"""FAB's search: walk along the decision boundary towards the point of it that is nearest to the image.

Shapes: B batch, C classes, D features of one image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.ascent import input_gradient
from robustcompress.robustness.auto_pgd import Findings
from robustcompress.robustness.nearest import shortest_step
from robustcompress.robustness.threat import Threat

Plane: TypeAlias = tuple[Tensor, Tensor]
"""A linear function per image, zero on the boundary it stands for: its values at the points, float
``[batch]``, and its gradients, float ``[batch, ...]``."""


@dataclass(frozen=True)
class BoundarySearch:
    """One search; :class:`~robustcompress.robustness.attacks.fab.Fab` says what it does, and whence.

    Attributes:
        steps: Projections onto the linearised boundary.
        alpha_max: Largest weight of the projection of the image itself.
        eta: How far beyond the boundary each projection goes; 1 is onto it.
        beta: Where to go on once the boundary is crossed: the share of the way from the image.
    """

    steps: int
    alpha_max: float
    eta: float
    beta: float

    def search(
        self,
        logits_of: Callable[[Tensor], Tensor],
        threat: Threat,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        rows: Tensor,
        findings: Findings,
    ) -> None:
        """Walk from ``start`` and note what is found; images leave once they are broken within the threat.

        Args:
            logits_of: The network.
            threat: Norm, radius and pixel range.
            images: The originals, float ``[rows, ...]``.
            start: First points, of the same shape.
            labels: int64 ``[rows]``.
            targets: The class whose boundary is followed, int64 ``[rows]``; ``None`` means the one that
                looks nearest from each point.
            rows: Which image of the batch each one is; with several targets an image is there several times.
            findings: About the batch; they are added to.

        Raises:
            ModelError: If the logits have no gradient by the images, or it is not finite.
        """
        points = start
        for _ in range(self.steps):
            if targets is None:
                plane = nearest_plane(logits_of, points, labels, threat)
            else:
                plane = plane_towards(logits_of, points, labels, targets)
            points = self._move(points, images, plane, threat)
            with torch.no_grad():
                wrong = logits_of(points).argmax(1) != labels
            broken = wrong & (threat.distances(points, images) <= threat.eps)
            if bool(broken.any()):
                findings.note_broken(rows[broken], points[broken])
                keep = findings.standing[rows]
                rows, images, points, labels = rows[keep], images[keep], points[keep], labels[keep]
                wrong, targets = wrong[keep], None if targets is None else targets[keep]
                if len(rows) == 0:
                    return
            points = torch.where(_like(wrong, points), torch.lerp(images, points, self.beta), points)

    def _move(self, points: Tensor, images: Tensor, plane: Plane, threat: Threat) -> Tensor:
        """Return the points between the projections of the points and of the images onto the boundary."""
        values_B, normals = plane
        normals_BD, images_BD, points_BD = normals.flatten(1), images.flatten(1), points.flatten(1)
        both_2BD = torch.stack([points_BD, images_BD])
        at_images_B = values_B + (images_BD - points_BD).mul_(normals_BD).sum(1)
        steps_2BD = shortest_step(
            both_2BD,
            normals_BD,
            torch.stack([values_B, at_images_B]),
            norm=threat.norm,
            lower=threat.lower,
            upper=threat.upper,
        )
        order = float("inf") if threat.norm == "linf" else 2.0
        lengths_2B1 = torch.linalg.vector_norm(steps_2BD, ord=order, dim=2, keepdim=True).clamp_min_(1e-8)
        share_B1 = (lengths_2B1[0] / lengths_2B1.sum(0)).clamp_max_(self.alpha_max)
        reached_2BD = both_2BD.add_(steps_2BD, alpha=self.eta)
        moved_BD = torch.lerp(reached_2BD[0], reached_2BD[1], share_B1)
        return moved_BD.clamp_(threat.lower, threat.upper).view_as(points)


def plane_towards(
    logits_of: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, targets: Tensor
) -> Plane:
    """Return the target's logit minus the right one, linearised at ``points``."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = logits_of(points)
        values = _difference(logits, targets, labels)
        normals = input_gradient(values, points)
    return _finite(values.detach(), normals)


def nearest_plane(
    logits_of: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, threat: Threat
) -> Plane:
    """Return the plane of the wrong class whose boundary looks nearest from each point.

    Source:
        Croce & Hein 2019, https://arxiv.org/abs/1907.02044: the difference of logits over the dual norm of
        its gradient. The box is not asked.
    """
    points = points.detach().requires_grad_()
    dual = 1.0 if threat.norm == "linf" else 2.0
    with torch.enable_grad():
        logits_BC = logits_of(points)
    others = logits_BC.shape[1] - 1
    nearest: tuple[Tensor, Tensor, Tensor] | None = None
    for number in range(others):
        # One backward for each wrong class: the number-th that is not the image's own.
        classes = number + (labels <= number).long()
        with torch.enable_grad():
            values = _difference(logits_BC, classes, labels)
            normals = input_gradient(values, points, keep_graph=number + 1 < others)
        values, normals = _finite(values.detach(), normals)
        steepness = torch.linalg.vector_norm(normals.flatten(1), ord=dual, dim=1)
        distance = values.abs() / (steepness + 1e-12)
        if nearest is None:
            nearest = distance, values, normals
            continue
        nearer = distance < nearest[0]
        nearest = (
            torch.where(nearer, distance, nearest[0]),
            torch.where(nearer, values, nearest[1]),
            torch.where(_like(nearer, normals), normals, nearest[2]),
        )
    assert nearest is not None, "a network of one class has no boundary"
    return nearest[1], nearest[2]


def _difference(logits_BC: Tensor, first_B: Tensor, second_B: Tensor) -> Tensor:
    chosen_B2 = logits_BC.gather(1, torch.stack([first_B, second_B], 1))
    return chosen_B2[:, 0] - chosen_B2[:, 1]


def _finite(values: Tensor, normals: Tensor) -> Plane:
    sound = (normals.flatten(1).sum(1) + values).isfinite()
    if not bool(sound.all()):
        raise ModelError(
            f"expected finite logits and gradients by the images; {int((~sound).sum())} of {len(sound)} "
            "images gave NaN or infinity, and no attack can follow them. Look for a root, a logarithm or a "
            "division at zero."
        )
    return values, normals


def _like(mask: Tensor, images: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (images.ndim - 1))
