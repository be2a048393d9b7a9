"""What every architecture must show under every pattern: masked, compact and exported networks agree."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.compaction import Compacted, compact
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores.magnitude import Magnitude
from tests.pruning.architectures.networks import SHAPE, settled


def baked(name: str, pattern: Pattern, sparsity: float) -> nn.Module:
    network = settled(name)
    sites = pattern.plan(network, torch.rand(2, *SHAPE), ()).sites
    parameters = dict(network.named_parameters())
    masking = Masking(sites, score=Magnitude(), budget=Uniform(), sparsity=sparsity, parameters=parameters)
    masking.bake(network)
    return network.eval()


def logits(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).to(dtype).eval()(images.to(dtype))  # type: ignore[no-any-return]


def assert_all_agree(masked: nn.Module, path: Path) -> Compacted:
    """Check compact against masked in float64, and ONNX Runtime on the compact one against both."""
    # In float64 throughout: constants that are folded into float32 weights are rounded there.
    result = compact(copy.deepcopy(masked).double(), torch.rand(4, *SHAPE, dtype=torch.float64))
    images = torch.rand(3, *SHAPE) * 2 - 0.5
    expected = logits(masked, images, torch.float64)
    actual = logits(result.network, images, torch.float64)
    assert float((expected - actual).abs().max() / expected.abs().max()) < 1e-10
    Onnx(style="dense").write(result.network, path, images=torch.rand(2, *SHAPE), metadata={})
    exported = torch.as_tensor(OnnxSession(path)(images)).double()
    for reference in (expected, actual):
        assert float((reference - exported).abs().max() / reference.abs().max()) < 1e-4
    return result
