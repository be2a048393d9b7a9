"""Learning from another network: who teaches, and how far an answer is from the teacher's.

Shapes: B batch, C classes.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network that another one learns from; it never changes.

    Attributes:
        network: On any device, in any mode; steps run a private copy in eval mode.
        identity: Hash of its tensors: a stage that resumes with another teacher is refused.
    """

    network: nn.Module
    identity: str

    def constant_copy(self, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
        """Return a copy in eval mode on ``device`` that asks for no gradient."""
        twin = copy.deepcopy(self.network).to(device).eval().requires_grad_(False)
        for parameter in twin.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        return twin


def divergence(target_BC: Tensor, logits_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return ``KL(softmax(target / T) || softmax(logits / T))``, the mean over images, a scalar.

    Args:
        target_BC: Logits of the teacher.
        logits_BC: Logits of the network that learns; gradients flow to both.
        temperature: T, above 0.
    """
    return F.kl_div(
        F.log_softmax(logits_BC / temperature, dim=1),
        F.log_softmax(target_BC / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
