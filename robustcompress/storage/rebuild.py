"""Put saved tensors into a freshly built network, whose layers shrink to the saved shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustcompress.errors import StorageError
from robustcompress.storage.dtypes import to_array
from robustcompress.storage.strict_json import shown

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CHANNEL_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Resize:
    """What must become of a layer so that the saved tensors fit.

    Attributes:
        settings: Values of the layer's attributes, such as ``out_channels``.
        shapes: Shapes that its tensors then have, by attribute.
    """

    settings: Mapping[str, int | _Shape]
    shapes: Mapping[str, _Shape]


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make ``module`` the network that ``tensors`` were saved from.

    ``module`` comes from the original constructor. Layers that lost channels since are given the saved
    shapes and the attributes that follow from them (``in_channels``, ``groups``, ``num_features`` ...).
    Tensors take the saved dtype and stay on the module's device. On an error nothing has changed.

    Args:
        module: Changed in place.
        tensors: A whole ``state_dict``: every parameter and persistent buffer, and nothing else.

    Raises:
        StorageError: If names are missing or unexpected, a layer is of a type that cannot be resized, is
            smaller than the saved one, or could be resized in two ways. The message names them.
    """
    current: dict[str, Tensor] = module.state_dict(keep_vars=True)
    _check_names(current, tensors)
    _check_ties(current, tensors)
    resizes: dict[str, _Resize] = {}
    for name, old in current.items():
        _check_dtype(name, old, tensors[name])
        owner, _, attribute = name.rpartition(".")
        if old.shape != tensors[name].shape and owner not in resizes:
            resizes[owner] = _resize(owner, module.get_submodule(owner), tensors, current)
        if owner in resizes and resizes[owner].shapes.get(attribute) != tuple(tensors[name].shape):
            raise _misfit(name, module.get_submodule(owner), old, tensors[name])
    for owner, resize in resizes.items():
        for attribute, setting in resize.settings.items():
            setattr(module.get_submodule(owner), attribute, setting)
    _fill(module, current, tensors)


def _check_names(current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(current) - set(tensors)), sorted(set(tensors) - set(current))
    if missing or extra:
        raise StorageError(
            f"the saved network is not the one built: missing {shown(missing)}; unexpected {shown(extra)}. "
            "Build the network that was compressed, with the same arguments."
        )
    for name, tensor in current.items():
        if is_lazy(tensor):
            raise StorageError(f"{name} has no shape yet: run the network once on an image before loading.")


def _check_ties(current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Names that share one tensor in the network must share one value in the file."""
    first: dict[int, str] = {}
    for name, tensor in current.items():
        other = first.setdefault(id(tensor), name)
        ours, theirs = tensors[name], tensors[other]
        if other == name or ours is theirs:
            continue
        same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if not same or to_array(name, ours)[1].tobytes() != to_array(other, theirs)[1].tobytes():
            raise StorageError(
                f"{name} and {other} are one tensor in the network built, but two in the saved one. "
                "Build the network that was compressed."
            )


def _check_dtype(name: str, old: Tensor, saved: Tensor) -> None:
    if old.is_floating_point() != saved.is_floating_point():
        raise StorageError(f"{name}: expected a tensor like {old.dtype}; the saved one is {saved.dtype}.")


def _misfit(name: str, layer: nn.Module, old: Tensor, saved: Tensor) -> StorageError:
    return StorageError(
        f"{name}: {type(layer).__name__} has {list(old.shape)}, the saved tensor {list(saved.shape)}, and "
        "the layer cannot be made to fit. Build the network that was compressed, with the same arguments."
    )


def _resize(
    owner: str, layer: nn.Module, tensors: Mapping[str, Tensor], current: Mapping[str, Tensor]
) -> _Resize:
    """Return what makes ``layer`` fit the tensors saved for it."""
    prefix = f"{owner}." if owner else ""
    own = [name for name in current if name.rpartition(".")[0] == owner]
    for name in own:
        old, saved = current[name], tensors[name]
        if old.ndim != saved.ndim or any(a < b for a, b in zip(old.shape, saved.shape, strict=True)):
            raise _misfit(name, layer, old, saved)
    saved_shapes = {name.removeprefix(prefix): tuple(tensors[name].shape) for name in own}
    leading = saved_shapes.get("weight", next(iter(saved_shapes.values())))
    if isinstance(layer, _CONVOLUTIONS):
        return _resize_convolution(owner, layer, leading)
    if isinstance(layer, _TRANSPOSED) and layer.groups == 1:
        inputs, outputs = leading[:2]
        return _Resize(
            {"in_channels": inputs, "out_channels": outputs},
            {"weight": (inputs, outputs, *layer.kernel_size), "bias": (outputs,)},
        )
    if isinstance(layer, nn.Linear):
        outputs, inputs = leading
        return _Resize(
            {"in_features": inputs, "out_features": outputs},
            {"weight": (outputs, inputs), "bias": (outputs,)},
        )
    channels = leading[0] if leading else 0
    if isinstance(layer, _CHANNEL_NORMS):
        vectors = ("weight", "bias", "running_mean", "running_var")
        shapes: dict[str, _Shape] = dict.fromkeys(vectors, (channels,))
        return _Resize({"num_features": channels}, {**shapes, "num_batches_tracked": ()})
    if isinstance(layer, nn.GroupNorm):
        groups = _groups_after(owner, layer.num_groups, layer.num_channels, channels)
        settings = {"num_channels": channels, "num_groups": groups}
        return _Resize(settings, {"weight": (channels,), "bias": (channels,)})
    if isinstance(layer, nn.LayerNorm):
        return _Resize({"normalized_shape": leading}, {"weight": leading, "bias": leading})
    if isinstance(layer, nn.PReLU):
        return _Resize({"num_parameters": channels}, {"weight": (channels,)})
    changed = next(name for name in own if current[name].shape != tensors[name].shape)
    raise _misfit(changed, layer, current[changed], tensors[changed])


def _resize_convolution(owner: str, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: _Shape) -> _Resize:
    outputs, inputs_per_group = weight[:2]
    groups = layer.groups
    if inputs_per_group == layer.in_channels // layer.groups:
        groups = _groups_after(owner, layer.groups, layer.out_channels, outputs)
    elif outputs % groups:
        raise StorageError(
            f"{owner}: {outputs} saved output channels cannot be spread over {groups} groups. "
            "Build the network that was compressed, with the same arguments."
        )
    return _Resize(
        {"in_channels": inputs_per_group * groups, "out_channels": outputs, "groups": groups},
        {"weight": (outputs, inputs_per_group, *layer.kernel_size), "bias": (outputs,)},
    )


def _groups_after(owner: str, groups: int, channels: int, left: int) -> int:
    """Return how many groups ``left`` of ``channels`` form: either whole groups went, or a part of each."""
    per_group = channels // groups
    ways = {left // per_group} if left % per_group == 0 else set[int]()
    if left % groups == 0:
        ways.add(groups)
    if len(ways) != 1:
        raise StorageError(
            f"{owner}: {left} of {channels} channels in {groups} groups are left, which is possible with "
            f"{' or '.join(str(way) for way in sorted(ways)) or 'no number of'} groups. "
            "Such a layer cannot be rebuilt from shapes: leave it out of channel removal."
        )
    return ways.pop()


def _fill(module: nn.Module, current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy values in place where shape and dtype allow (ties and optimizers live on), else replace."""
    replaced: dict[int, Tensor] = {}
    for name, old in current.items():
        saved = tensors[name].detach()
        if old.shape == saved.shape and old.dtype == saved.dtype:
            with torch.no_grad():
                old.copy_(saved)
            continue
        if id(old) not in replaced:
            fresh = saved.to(old.device, copy=True).contiguous()
            is_parameter = isinstance(old, nn.Parameter)
            replaced[id(old)] = nn.Parameter(fresh, old.requires_grad) if is_parameter else fresh
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, replaced[id(old)])
