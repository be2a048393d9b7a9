"""Who is judged, and through what attacks may look at it."""

from dataclasses import dataclass

from torch import nn

from robustcompress.robustness.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Target:
    """A predictor that gives no gradients, and a network that computes the same and does.

    Attributes:
        predictor: Who is judged: every accuracy is what it says. Such as
            :class:`~robustcompress.export.session.OnnxSession`.
        twin: A differentiable module that computes what ``predictor`` does, up to rounding, such as
            :func:`~robustcompress.export.twin.read_twin` makes of an ONNX file. Attacks that follow
            gradients run on it. ``None``: attacks that need none are all that can be run.
        reason: Why there is no twin; empty if there is one.
        quick: Computes what ``predictor`` does, up to rounding, and faster, such as a session of the
            network's export. Attacks that need no gradients ask it; what they find is re-scored on
            ``predictor``.
    """

    predictor: Predictor
    twin: nn.Module | None = None
    reason: str = ""
    quick: Predictor | None = None
