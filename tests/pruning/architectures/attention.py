"""Attention: over channels, and over patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the means of all."""

    def __init__(self, width: int, hidden: int, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite, self.gate = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1), gate

    def forward(self, features: Tensor) -> Tensor:
        means = features.mean((2, 3), keepdim=True)
        gates: Tensor = self.gate(self.excite(F.relu(self.squeeze(means))))
        return features * gates


class Attention(nn.Module):
    """Two heads over patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        weights = (queries @ keys.transpose(-2, -1) * (width // 2) ** -0.5).softmax(-1)
        mixed: Tensor = self.back((weights @ values).transpose(1, 2).reshape(batch, count, width))
        return mixed


class Layer(nn.Module):
    """Attention and a hidden layer, both after a normalisation and around a stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        inner: Tensor = self.back(F.gelu(self.hidden(self.norm2(tokens))))
        return tokens + inner


class Vit(nn.Module):
    """Nine patches and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.places = nn.Parameter(torch.randn(1, 10, 16) * 0.1)
        self.layers = nn.Sequential(Layer(16), Layer(16))
        self.norm, self.classifier = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), tokens], 1) + self.places
        logits: Tensor = self.classifier(self.norm(self.layers(tokens))[:, 0])
        return logits
