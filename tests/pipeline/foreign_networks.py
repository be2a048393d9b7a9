"""Networks with the names and the masks of HYDRA's and torchvision's code, written for the tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _mask(scores: Tensor, k: float) -> Tensor:
    """What the reference says: the first ``int((1 - k) * n)`` of the sorted absolute scores go."""
    flat = scores.abs().flatten()
    mask = torch.ones_like(flat)
    mask[flat.sort().indices[: int((1 - k) * flat.numel())]] = 0
    return mask.reshape(scores.shape)


class ScoredConv(nn.Conv2d):
    k = 1.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.popup_scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        masked = self.weight * _mask(self.popup_scores, self.k)
        return F.conv2d(input, masked, self.bias, self.stride, self.padding)


class ScoredLinear(nn.Linear):
    k = 1.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.popup_scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * _mask(self.popup_scores, self.k), self.bias)


Conv = Callable[..., nn.Conv2d]


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, conv: Conv, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        passed = nn.Sequential()
        if stride != 1 or inputs != outputs:
            passed = nn.Sequential(
                conv(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.way = shortcut
        setattr(self, shortcut, passed)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        passed: Tensor = getattr(self, self.way)(x)
        outputs: Tensor = F.relu(inner + passed)
        return outputs


class Resnet18(nn.Module):
    """Four stages of two blocks; ``shortcut`` and ``top`` are the names that differ from code to code."""

    def __init__(self, width: int, conv: Conv, linear: Any, shortcut: str, top: str) -> None:
        super().__init__()
        self.conv1 = conv(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            blocks = [_Basic(inputs, outputs, 2 if stage else 1, conv, shortcut)]
            blocks.append(_Basic(outputs, outputs, 1, conv, shortcut))
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.top = top
        setattr(self, top, linear(inputs, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.top)(x.mean((2, 3)))  # type: ignore[no-any-return]  # a module chosen by name


class _Wide(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = ScoredConv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = ScoredConv(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = ScoredConv(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        passed = x if self.convShortcut is None else self.convShortcut(active)
        made: Tensor = passed + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return made


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        blocks = [_Wide(inputs, outputs, stride), *(_Wide(outputs, outputs, 1) for _ in range(3))]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]  # torch does not type calls of modules


class WideResnet284(nn.Module):
    """With the copy of the first stage that its authors' code makes and never uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ScoredConv(3, width, 3, padding=1, bias=False)
        self.block1 = _Stage(width, 4 * width, 1)
        self.sub_block1 = _Stage(width, 4 * width, 1)
        self.block2 = _Stage(4 * width, 8 * width, 2)
        self.block3 = _Stage(8 * width, 16 * width, 2)
        self.bn1 = nn.BatchNorm2d(16 * width)
        self.fc = ScoredLinear(16 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]  # as above


def lived_in(network: nn.Module, k: float = 1.0) -> nn.Module:
    """Set ``k`` and give normalisation layers statistics as after training; returned in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, ScoredConv | ScoredLinear):
            module.k = k
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) / 4
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.num_batches_tracked = torch.tensor(12)
    return network.eval()
