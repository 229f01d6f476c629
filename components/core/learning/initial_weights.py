"""Weights that a network starts from: a file for a backbone, or an earlier run's pretrained network. torch only.

O output channels, I input channels of a convolution. E embedding, K classes.

A backbone's file is safetensors or a torch state dict with the network's own names (timm's, for a timm model; pretrain's
output, without its classifier), or for `xception` with the names of timm's `legacy_xception`, which published ImageNet
weights use (Chollet's network ported by R. Cadene):

    legacy_xception                  Xception
    conv1, bn1                       stem.0, stem.1        3x3, placed in the centre of the 7x7
    conv2, bn2                       stem.3, stem.4
    block1 ... (entry)               entry.0 ...
    the next blocks                  middle.0 ...
    the last block                   exit.0
    conv3, bn3, conv4, bn4           exit.1, exit.2, exit.4, exit.5
    blockN.rep.i, .skip, .skipbn     body.i, shortcut.0, shortcut.1 of that block
    X.conv1, X.pointwise             X.0, X.1 of a separable convolution
    fc, last_linear                  none, the classifier

The modules that training programs put around a network, WRAPPERS and torch.compile's `_orig_mod.`, may lead names, nested too.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from components.core.config import BackboneConfig
from components.core.errors import InputError, shortened
from components.core.learning.network import Classifier
from components.core.learning.weight_files import check_tensors, read_tensors
from components.core.storage.run_records import OPTION

WRAPPERS = ("module.", "model.", "encoder.", "backbone.")
"""What names of tensors may begin with: DataParallel's, training programs' and pretrain's own."""


@dataclass(frozen=True)
class InitialWeights:
    """Which tensors of a backbone were initialised from a file."""

    taken: tuple[str, ...]  # tensors that now have the file's values, including `adapted` and `resampled`
    adapted: tuple[str, ...]  # convolutions whose weights were adapted to the number of input channels
    resampled: tuple[str, ...]  # tensors, position embeddings and the like, that were resampled to the image size
    new: tuple[str, ...]  # tensors that stay random
    unused: tuple[str, ...]  # tensors of the file that the backbone does not have, except classifiers
    expected: bool  # whether only the first layer and classifiers did not match, as for images with other channels

    def sentence(self, backbone: str, source: str) -> str:
        """The result in one line, for the user."""
        total = len(self.taken) + len(self.new)
        groups = {
            "adapted to its channels": self.adapted,
            "resampled to its image size": self.resampled,
            "new": self.new,
            "not used": self.unused,
        }
        more = [f"; {what}: {shortened(names)}" for what, names in groups.items() if names]
        return f"{backbone}: {len(self.taken)} of {total} tensors start from {source}{''.join(more)}"


def load_initial_weights(
    backbone: nn.Module,
    config: BackboneConfig,
    path: Path,
    channels: int,
    image_size: int | None = None,
    source: str | None = None,
) -> InitialWeights:
    """Overwrites a backbone's random weights with those of a file whose names and shapes match.

    A timm model's weights for another image size are resampled.

    Args:
        backbone: the network without its classifier.
        config: its configuration.
        path: the file.
        channels: channels of the images.
        image_size: side of the images, pixels, for messages; None leaves it out.
        source: the file's name in messages; None for its path.

    Raises:
        InputError: the file cannot be read, a tensor has another shape or a value that is not finite, or no name matches.
            The backbone is then unchanged.
    """
    source = source or str(path)
    own = backbone.state_dict()
    tensors = _own_names(read_tensors(path), config, own, source)
    # Layers that read the image.
    first = {"xception": ["stem.0"], "plain": ["layers.0"]}.get(config.kind) or _described(backbone, "first_conv")
    classifiers = ["head", "fc", "classifier", "last_linear", *_described(backbone, "classifier")]
    resampled: list[str] = []
    others = [name for name in own if name in tensors and name.removesuffix(".weight") not in first]
    if config.kind == "timm" and any(tensors[name].shape != own[name].shape for name in others):
        given, tensors = tensors, _resampled(tensors, backbone)
        resampled = [n for n in others if n in tensors and tensors[n].shape != given[n].shape]
    values: dict[str, Tensor] = {}
    adapted = []
    for name in sorted(own.keys() & tensors.keys()):
        value, shape = tensors[name], tuple(own[name].shape)
        if name.removesuffix(".weight") in first and value.ndim == 4 and value.shape[1] != shape[1]:
            value = adapt_input_channels(value, channels)
            adapted.append(name)
        if config.kind == "xception" and name == "stem.0.weight" and value.ndim == 4:
            value = widen_kernel(value, shape[-1])
        if tuple(value.shape) != shape:
            raise InputError(
                f"{source}: tensor {name} has shape {tuple(tensors[name].shape)}, but backbone {config.name} needs {shape}"
                f"{f' for images of {image_size} x {image_size} pixels' if image_size else ''}; give weights of the same "
                "architecture"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"{source}: tensor {name} has a value that is not finite; use another file")
        values[name] = value
    if not any(name.endswith("weight") for name in values):
        raise InputError(
            f"{source}: no tensor has a name of backbone {config.name} ({', '.join(list(own)[:3])}, ...); the file "
            f"has {', '.join(sorted(tensors)[:3])}, ...: give weights of the same architecture"
        )
    backbone.load_state_dict({**own, **values})
    # num_batches_tracked is never read, and older files lack it.
    new = tuple(n for n in own if n not in values and not n.endswith("num_batches_tracked"))
    unused = tuple(n for n in sorted(tensors.keys() - own.keys()) if not _begins_with(n, classifiers))
    expected = not unused and all(_begins_with(n, first) for n in new)
    return InitialWeights(tuple(values), tuple(adapted), tuple(resampled), new, unused, expected)


def adapt_input_channels(weight_OIHW: Tensor, channels: int) -> Tensor:
    """A convolution's weights for another number of input channels: repeated in turn, scaled to keep the size of activations.

    Input channel c gets the weights of channel c mod I, times I / channels. If all channels of the image are equal and
    `channels` is a multiple of I, the output does not change.

    Source: Wightman, timm (`adapt_input_conv`), for any I instead of 3.
    """
    inputs = weight_OIHW.shape[1]
    repeated = weight_OIHW.repeat(1, -(-channels // inputs), 1, 1)[:, :channels]
    return repeated * (inputs / channels)


def widen_kernel(weight_OIHW: Tensor, size: int) -> Tensor:
    """A smaller odd kernel, centred in a larger one of zeros: the same filter.

    With padding (size - 1) / 2 the output is the same, except for a shift if the small kernel was not padded.
    """
    margin, odd = divmod(size - weight_OIHW.shape[-1], 2)
    if odd or margin <= 0:
        return weight_OIHW
    return torch.nn.functional.pad(weight_OIHW, (margin,) * 4)


def _own_names(
    tensors: Mapping[str, Tensor], config: BackboneConfig, own: Collection[str], source: str
) -> dict[str, Tensor]:
    """The file's tensors under the backbone's names, as far as they can be recognised.

    Raises:
        InputError: two tensors have one name but for their wrappers.
    """
    is_legacy = config.kind == "xception" and any(re.search(r"(^|\.)block\d+\.rep\.", name) for name in tensors)
    found: dict[str, str] = {}
    for name in sorted(tensors, key=lambda name: (name.count("."), name)):  # those without wrappers come first
        known = _unwrapped(name, own, config if is_legacy else None)
        other = found.setdefault(known, name)
        if other != name and other != known and known in own:
            raise InputError(f"{source}: both {other} and {name} may be tensor {known}; save one network alone")
    return {known: tensors[name] for known, name in found.items()}


def _unwrapped(name: str, own: Collection[str], legacy: BackboneConfig | None) -> str:
    """A tensor's name without the modules around its network: the backbone's own name, if it has one."""
    name = name.replace("_orig_mod.", "")  # torch.compile puts it before the part that it compiles
    while True:
        known = _from_legacy(name, legacy) if legacy else name
        if known in own or not name.startswith(WRAPPERS):
            return known
        name = name.partition(".")[2]


def _resampled(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a timm model for another image size, as timm resamples position embeddings and the like.

    Unchanged if timm has no rule for the model.
    """
    resample = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if resample is None:
        return tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its interpolation
        try:
            return dict(resample(dict(tensors), backbone))
        except Exception:  # its rules expect files of many forms; what does not fit is reported with its shape
            return tensors


def _from_legacy(name: str, config: BackboneConfig) -> str:
    """The Xception's name of a tensor of timm's legacy_xception; unknown names stay."""
    entry, middle = len(config.entry) - 1, config.middle_blocks
    layers = {
        "conv1": "stem.0", "bn1": "stem.1", "conv2": "stem.3", "bn2": "stem.4",
        "conv3": "exit.1", "bn3": "exit.2", "conv4": "exit.4", "bn4": "exit.5",
    }  # fmt: skip
    blocks = [f"entry.{k}" for k in range(entry)] + [f"middle.{k}" for k in range(middle)] + ["exit.0"]
    layers |= {f"block{number}": block for number, block in enumerate(blocks, start=1)}
    top, _, rest = name.partition(".")
    if top not in layers:
        return name
    if top.startswith("block"):
        rest = re.sub(r"^rep\.", "body.", rest)
        rest = re.sub(r"^skip\.", "shortcut.0.", rest)
        rest = re.sub(r"^skipbn\.", "shortcut.1.", rest)
    rest = re.sub(r"(^|\.)conv1\.", r"\g<1>0.", rest)
    rest = re.sub(r"(^|\.)pointwise\.", r"\g<1>1.", rest)
    return f"{layers[top]}.{rest}"


def _described(backbone: nn.Module, what: str) -> list[str]:
    """Names of layers in timm's description of a model; none for an Xception."""
    names = (getattr(backbone, "pretrained_cfg", None) or {}).get(what) or ()
    return [names] if isinstance(names, str) else list(names)


def _begins_with(name: str, layers: Iterable[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


@dataclass(frozen=True)
class CopiedWeights:
    """Which classes of a network kept an earlier run's weights."""

    known: tuple[str, ...]  # perturbations of both screens, whose rows of the head were copied
    new: tuple[str, ...]  # perturbations of this screen only, whose rows stay random
    left_out: tuple[str, ...]  # perturbations of the earlier screen only

    def sentence(self, backbone: str, source: str) -> str:
        """The result in one line, for the user."""
        groups = {"start at random": self.new, "are left out": self.left_out}
        more = [f", {len(names)} {what} ({shortened(names)})" for what, names in groups.items() if names]
        return f"{backbone}: starts from {source}; {len(self.known)} classes keep their rows of the head{''.join(more)}"


def copy_pretrained(
    network: Classifier, file: Path, then: Sequence[str], now: Sequence[str], source: str
) -> CopiedWeights:
    """Overwrites a network's random weights: the whole backbone, and the head's rows of perturbations that both screens have.

    Args:
        network: the new run's network.
        file: weights.safetensors of the earlier run.
        then: labels of the earlier run's classes, in class order.
        now: labels of the network's classes, in class order.
        source: name of the weights in messages.

    Raises:
        InputError: the file cannot be read or has another architecture; the network is then unchanged.
    """
    tensors, own = read_tensors(file), dict(network.state_dict())
    row_then = {label: k for k, label in enumerate(then)}
    rows_now = [k for k, label in enumerate(now) if label in row_then]
    rows_then = [row_then[now[k]] for k in rows_now]
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    expected = {name: (len(then), *shape[1:]) if name.startswith("head.") else shape for name, shape in shapes.items()}
    check_tensors(f"{OPTION}: {source}", tensors, expected)
    values = dict(tensors)
    for name in tensors:
        if name.startswith("head."):
            values[name] = own[name].clone()
            values[name][torch.tensor(rows_now, dtype=torch.long)] = tensors[name][rows_then].to(own[name].dtype)
    network.load_state_dict(values)
    kept = {now[k] for k in rows_now}
    return CopiedWeights(
        tuple(now[k] for k in rows_now),
        tuple(label for label in now if label not in kept),
        tuple(label for label in then if label not in kept),
    )
