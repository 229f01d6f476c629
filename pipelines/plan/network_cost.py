"""What a network costs on one site: multiply-accumulates, memory traffic, parameters. Pure Python, from the architecture.

The layers are those of core.learning.xception and core.learning.network, which a test compares with torch's own counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from components.core.config import CHANNELS, BackboneConfig
from components.core.errors import InputError

BACKWARD = 2
"""Multiply-accumulates and traffic of a backward pass, in forward passes: gradients of inputs and of weights."""


@dataclass(frozen=True)
class Layer:
    """One operation on one site.

    Attributes:
        macs: multiply-accumulates of the forward pass.
        moved: elements that the forward pass reads and writes, BatchNorm in train mode.
        parameters: trained numbers.
        buffers: numbers that are stored beside them: running statistics and a counter.
        saved: elements that training keeps for the backward pass.
        saved_bytes: what it keeps in bytes whatever the precision: indices of max pooling.
        needs_input_gradient: false for the first layer, whose input is the image.
    """

    macs: int = 0
    moved: int = 0
    parameters: int = 0
    buffers: int = 0
    saved: int = 0
    saved_bytes: int = 0
    needs_input_gradient: bool = True


@dataclass(frozen=True)
class NetworkCost:
    """A backbone with its head at one image size.

    Attributes:
        layers: in order; a single one where only totals are known.
        pixels: values of an image, channels included.
        embedding: E, numbers of an embedding.
    """

    layers: tuple[Layer, ...]
    pixels: int
    embedding: int

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def train_macs(self) -> int:
        """Multiply-accumulates of a forward and a backward pass; the image itself needs no gradient."""
        saved = sum(layer.macs for layer in self.layers if not layer.needs_input_gradient)
        return (1 + BACKWARD) * self.forward_macs - saved

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in a file, float32; a counter takes eight."""
        return 4 * (self.parameters + sum(layer.buffers for layer in self.layers))

    def activation_bytes(self, element: int) -> int:
        """Memory that training keeps for one site between forward and backward pass.

        Args:
            element: bytes of an activation.
        """
        return sum(layer.saved * element + layer.saved_bytes for layer in self.layers)


def network_cost(backbone: BackboneConfig, image_size: int, classes: int) -> NetworkCost:
    """Costs of a parametric Xception with its head.

    Args:
        backbone: its widths.
        image_size: side of the images, pixels.
        classes: K.

    Raises:
        InputError: a timm model, of which only torch knows the layers, or images too small for its strides.
    """
    if backbone.kind != "xception":
        raise InputError(
            f"backbones.{backbone.name}: the layers of a timm model are not known here; describe it under networks in a "
            "file for --throughput (gmacs, image_size, parameters, embedding)"
        )
    embedding = backbone.exit[-1]
    layers = [*_xception(backbone, image_size), _head(embedding, classes)]
    return NetworkCost(tuple(layers), len(CHANNELS) * image_size**2, embedding)


def _xception(config: BackboneConfig, image_size: int) -> Iterator[Layer]:
    first, *rest = config.entry
    size = (image_size + 6 - 7) // 2 + 1
    yield _convolution(len(CHANNELS), config.stem, 7, image_size, size, image=True)
    yield from (_batch_norm(config.stem, size), _relu(config.stem, size))
    before, size = size, (size - 3) // config.second_stride + 1
    if size < 1:
        raise InputError(f"screen.image_size {image_size}: too small for the strides of backbone {config.name}")
    yield _convolution(config.stem, first, 3, before, size)
    yield from (_batch_norm(first, size), _relu(first, size))
    for k, (inputs, outputs) in enumerate(pairwise((first, *rest))):
        yield from _block((inputs, outputs, outputs), size, 2, leading_relu=k > 0)
        size = _halved(size)
    width = config.entry[-1]
    for _ in range(config.middle_blocks):
        yield from _block((width,) * 4, size, 1)
    a, b, c = config.exit
    yield from _block((width, width, a), size, 2)
    size = _halved(size)
    yield from (*_separable(a, b, size), _batch_norm(b, size), _relu(b, size))
    yield from (*_separable(b, c, size), _batch_norm(c, size), Layer(moved=c * size**2 + c))


def _block(widths: tuple[int, ...], size: int, stride: int, leading_relu: bool = True) -> Iterator[Layer]:
    for k, (inputs, outputs) in enumerate(pairwise(widths)):
        if k > 0 or leading_relu:
            # The first works beside its input, which the shortcut reads too; its output is then a tensor of its own.
            yield _relu(inputs, size)
        yield from (*_separable(inputs, outputs, size), _batch_norm(outputs, size))
    first, last = widths[0], widths[-1]
    after = _halved(size) if stride > 1 else size
    if stride > 1:
        pooled = last * after**2
        yield Layer(moved=last * size**2 + pooled, saved=last * size**2, saved_bytes=8 * pooled)
    if stride > 1 or first != last:
        yield from (_convolution(first, last, 1, size, after), _batch_norm(last, after))
    yield Layer(moved=3 * last * after**2)


def _separable(inputs: int, outputs: int, size: int) -> tuple[Layer, Layer]:
    """Depthwise 3x3 and pointwise 1x1. The depthwise one keeps no input: the ReLU before it keeps that as its output."""
    area = size**2
    depthwise = Layer(macs=9 * inputs * area, moved=2 * inputs * area, parameters=9 * inputs)
    pointwise = Layer(
        macs=inputs * outputs * area,
        moved=(inputs + outputs) * area,
        parameters=inputs * outputs,
        saved=inputs * area,
    )
    return depthwise, pointwise


def _convolution(inputs: int, outputs: int, kernel: int, before: int, after: int, image: bool = False) -> Layer:
    weights = inputs * outputs * kernel**2
    return Layer(
        macs=weights * after**2,
        moved=inputs * before**2 + outputs * after**2,
        parameters=weights,
        # The image, or a block's input for its shortcut; what follows a ReLU is kept as that one's output.
        saved=inputs * before**2 if image or kernel == 1 else 0,
        needs_input_gradient=not image,
    )


def _batch_norm(channels: int, size: int) -> Layer:
    """Reads its input twice, for the statistics and for the result; keeps it."""
    elements = channels * size**2
    return Layer(moved=3 * elements, parameters=2 * channels, buffers=2 * channels + 2, saved=elements)


def _relu(channels: int, size: int) -> Layer:
    elements = channels * size**2
    return Layer(moved=2 * elements, saved=elements)


def _halved(size: int) -> int:
    """Side after a window of three with stride 2 and padding 1."""
    return (size - 1) // 2 + 1


def _head(embedding: int, classes: int) -> Layer:
    """A product of embedding and class weights; softmax adds a bias a class, which is nothing."""
    return Layer(macs=embedding * classes, moved=embedding + classes, parameters=embedding * classes, saved=embedding)
