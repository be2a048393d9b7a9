"""What exported files are to an attack: a session, and a network to follow that computes the same."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from robustcompress.errors import ExportError
from robustcompress.export.formats import Exported
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.pipeline.context import Context
from robustcompress.robustness.target import Target

_ROUNDING = 1e-4
"""Largest difference of a logit, over the largest logit, of a file that is its network but for rounding."""
_MOVED = "rounding_moved_logits"


def file_targets(context: Context, files: Sequence[Exported]) -> dict[str, Target]:
    """Return each ONNX file's session, with the differentiable twin that is read from the file.

    A file whose graph is not understood gets none, and a warning: what can be measured of it is what was made
    on the network, and attacks that need no gradients.
    """
    targets: dict[str, Target] = {}
    for item in files:
        if item.path.suffix != ".onnx":
            continue
        session = OnnxSession(item.path)
        try:
            twin = read_twin(item.path, session, context.example_inputs.cpu())
        except ExportError as error:
            targets[item.path.name] = Target(session, None, str(error))
            context.warn(f"{item.path.name} is attacked without gradients: {error}")
        else:
            targets[item.path.name] = Target(session, twin.network)
    return targets


def with_quick(
    network: nn.Module, targets: Mapping[str, Target], files: Sequence[Exported], device: torch.device
) -> nn.Module | Target:
    """Return the network as a target whose logits alone come from a file's session, where that is faster.

    On a CPU a runtime takes a fraction of the time. Attacks that need no gradients ask it; what they find is
    scored on the network itself.
    """
    exact = [item for item in files if item.path.name in targets and _is_exact(item)]
    if device.type != "cpu" or not exact:
        return network
    return Target(network, network, quick=targets[exact[0].path.name].predictor)


def _is_exact(file: Exported) -> bool:
    """Return whether a file computes what the network does: its proof, and no values that were rounded."""
    return file.largest_difference <= _ROUNDING and _MOVED not in file.details
