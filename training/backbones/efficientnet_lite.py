"""EfficientNet-Lite0 (Google, 2020; Tan and Le, arXiv 1905.11946): pictures as vectors of 1,280 values on a CPU."""

# The Lite variant has neither squeeze-and-excitation nor swish. Convolutions of stride 2 pad as TensorFlow does
# ("SAME"): the odd pixel on the right and at the bottom. Names of the weights are those of the published PyTorch
# conversion.

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from training.backbones.items.item_encoder import Inputs
from training.errors import BackboneError

MODEL_TYPE = "efficientnet-lite0"
WEIGHTS_FILE = "model.safetensors"
CHANNELS = 1_280
SIDE = 224
_EPSILON = 1e-3
# repeats, kernel, stride, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class _SameConv(nn.Conv2d):
    """A convolution whose output side is ⌈input side / stride⌉."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) → (n, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max(-(-side // stride) * stride - stride + kernel - side, 0) for side in pixels.shape[-2:])
        padded = functional.pad(pixels, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(padded)


def _conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> _SameConv:
    return _SameConv(channels_in, channels_out, kernel, stride=stride, groups=groups, bias=False)


class _Block(nn.Module):
    """Inverted residual: expand, convolve each channel, project; added to its input where the shapes agree."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = _conv(channels_in, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._depthwise_conv = _conv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = _conv(inner, channels_out, 1)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=_EPSILON)
        self._adds = stride == 1 and channels_in == channels_out

    def forward(self, pixels: Tensor) -> Tensor:
        inner = functional.relu6(self._bn0(self._expand_conv(pixels))) if self._expands else pixels
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        output: Tensor = self._bn2(self._project_conv(inner))
        return output + pixels if self._adds else output


class EfficientNetLite0(nn.Module):
    """The network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPSILON)
        blocks = []
        for repeats, kernel, stride, expansion, channels_in, channels_out in _STAGES:
            blocks.append(_Block(kernel, stride, expansion, channels_in, channels_out))
            blocks.extend(_Block(kernel, 1, expansion, channels_out, channels_out) for _ in range(repeats - 1))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(320, CHANNELS, 1)
        self._bn1 = nn.BatchNorm2d(CHANNELS, eps=_EPSILON)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) pixels of −1 … 1 → (n, 1280), the mean over the last feature map."""
        pixels = functional.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            pixels = block(pixels)
        return functional.relu6(self._bn1(self._conv_head(pixels))).mean(dim=(2, 3))


class EfficientNetLiteTower:
    """Implements ``PictureModel`` of :mod:`training.backbones.items.towers`.

    The whole picture is squashed to 224 × 224 pixels, so that nothing of a tall one is cut off.

    Args:
        model: with its weights.
    """

    def __init__(self, model: EfficientNetLite0) -> None:
        self.model: nn.Module = model
        self.dim = CHANNELS
        self.pixels = SIDE * SIDE

    def prepare(self, pictures: Sequence[Image.Image]) -> Inputs:
        """(n, 3, 224, 224) pixels, (value − 127) / 128."""
        squashed = [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for picture in pictures]
        pixels = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2)
        return {"pixel_values": ((pixels.float() - 127) / 128).to(next(self.model.parameters()).dtype)}

    def encode(self, inputs: Inputs) -> Tensor:
        """(n, 1280), not normalised."""
        output: Tensor = self.model(inputs["pixel_values"])
        return output


def load(directory: Path, *, dtype: str) -> EfficientNetLiteTower:
    """Read EfficientNet-Lite0 from ``model.safetensors``.

    Args:
        directory: with the weights; those of the classifier, if there are any, are left out.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        BackboneError: the file is missing or unreadable, or its weights are of another network.
    """
    path = directory / WEIGHTS_FILE
    model = EfficientNetLite0()
    try:
        stored = {name: value for name, value in load_file(path).items() if not name.startswith("_fc.")}
        model.load_state_dict(stored)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["unreadable"])[0]
        raise BackboneError(
            f"{path}: EfficientNet-Lite0 cannot be read ({reason}); convert the published weights again"
        ) from error
    return EfficientNetLiteTower(model.to(getattr(torch, dtype)).eval())
