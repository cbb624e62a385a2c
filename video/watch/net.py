"""EfficientNet-Lite0 for looking at hours of film: the same numbers as the package's model in less than half the time.

Batch norms are folded into the convolutions before them, pictures lie in memory with their channels last, and a
convolution of one place is a product of matrices: on a CPU PyTorch has no fast path for those. Few pictures at once
(`AT_ONCE`) keep a layer's output within the processor's cache.

    net = FeatureNet.of(feature_net())
    net.extract_features(pixels)                     # (n, 3, S, S) -> (n, 1280, S / 32, S / 32)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

AT_ONCE = 4  # pictures


class _Layer(nn.Module):
    """A convolution with its batch norm folded in, padded as TensorFlow does ("same"), then ReLU6 where ``bent``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, convolution: Any, norm: Any, *, bent: bool = True) -> None:
        super().__init__()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = convolution.weight * scale[:, None, None, None]
        self.side, self.step, self.groups, self.bent = weight.shape[-1], convolution.stride[0], convolution.groups, bent
        self.register_buffer(
            "weight",
            weight[:, :, 0, 0].contiguous() if self.side == 1 else weight.contiguous(memory_format=torch.channels_last),
        )
        self.register_buffer("bias", norm.bias - norm.running_mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.side == 1:
            y = functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        else:
            sides = [
                max((-(-length // self.step) - 1) * self.step + self.side - length, 0) for length in x.shape[:1:-1]
            ]
            if all(pad % 2 == 0 for pad in sides):
                padding = (sides[1] // 2, sides[0] // 2)
            else:
                x, padding = functional.pad(x, [part for pad in sides for part in (pad // 2, pad - pad // 2)]), (0, 0)
            y = functional.conv2d(x, self.weight, self.bias, self.step, padding, 1, self.groups)
        return y.clamp_(0, 6) if self.bent else y


class _Block(nn.Module):
    """Widen, look around in each channel, narrow; the input is added where sizes allow (MobileNetV2)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers = [_Layer(block._depthwise_conv, block._bn1), _Layer(block._project_conv, block._bn2, bent=False)]
        if hasattr(block, "_expand_conv"):
            layers.insert(0, _Layer(block._expand_conv, block._bn0))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.add_(x) if y.shape == x.shape else y


class FeatureNet(nn.Module):
    """The network without its batch norms, frozen. classifier: mean features (n, 1280) to ImageNet's classes."""

    def __init__(self, layers: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.layers, self.classifier = layers, classifier
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, net: Any) -> FeatureNet:
        """From an ``EfficientNet`` Lite of the package ``efficientnet-lite-pytorch`` (no squeeze and excitation)."""
        with torch.no_grad():
            blocks = [_Block(block) for block in net._blocks]
            first, last = _Layer(net._conv_stem, net._bn0), _Layer(net._conv_head, net._bn1)
            return cls(nn.Sequential(first, *blocks, last), net._fc)

    @torch.no_grad()
    def extract_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S), as `prepared` gives them, to (n, 1280, S / 32, S / 32), float32."""
        parts = [self.layers(part.contiguous(memory_format=torch.channels_last)) for part in pixels.split(AT_ONCE)]
        return torch.cat(parts)
