"""What ATen operations do to channels: which leave them in place, move them, pool beside them or mix them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COPIES = frozenset(("clone", "_to_copy", "detach", "alias", "lift_fresh", "native_dropout", "dropout"))
"""Entry by entry, without changing a value."""

_UNTAGGED = frozenset(("hardswish", "_prelu_kernel", "rsub", "where", "masked_fill", "copy"))

MOVES = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze",
    "expand", "repeat", "repeat_interleave", "slice", "select", "split", "split_with_sizes", "unbind", "cat",
    "stack", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "unfold", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d", "alias_copy",
))  # fmt: skip
"""Put entries elsewhere and change none; they are followed by doing the same to the labels."""

CUTS = frozenset(("slice", "select"))
SPLITS = frozenset(("split", "split_with_sizes"))

_POOLED = ("avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "max_pool")
_RESIZED = (
    "upsample_nearest", "_upsample_nearest_exact", "upsample_bilinear", "upsample_linear",
    "upsample_bicubic", "upsample_trilinear", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
_REDUCTIONS = frozenset((
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm",
    "linalg_vector_norm",
))  # fmt: skip
_SOFTMAX = frozenset(("_softmax", "_log_softmax"))
_FACTORIES = frozenset((
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "empty",
))  # fmt: skip

_PROBE = torch.tensor([-2.3, -0.7, 0.4, 1.9], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an ATen operation.

    Attributes:
        function: The overload.
        name: Its name without namespace, overload and the underscore of operations in place.
        arguments: By the names of its schema; those left out are absent.
    """

    function: Callable[..., Any]
    name: str
    arguments: Mapping[str, Any]

    @staticmethod
    def of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Call":
        """Return the call with its arguments by name."""
        names = [argument.name for argument in function._schema.arguments]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        name = str(function._schema.name).split("::")[-1]
        return Call(function, name.rstrip("_") or name, bound)

    @property
    def title(self) -> str:
        """Name as a person knows it."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    def run(self, change: Callable[[Tensor], Tensor], **other: Any) -> Any:
        """Call the operation again, with every tensor changed and ``other`` arguments in place of its own."""
        changed = {name: _mapped(value, change) for name, value in {**self.arguments, **other}.items()}
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for argument in self.function._schema.arguments:  # type: ignore[attr-defined]  # of an OpOverload
            if argument.name not in changed:
                if argument.kwarg_only:
                    continue
                positional.append(argument.default_value)
            elif argument.kwarg_only:
                keywords[argument.name] = changed[argument.name]
            else:
                positional.append(changed[argument.name])
        return self.function(*positional, **keywords)

    def makes_new(self) -> bool:
        """Whether only the shape of its argument matters."""
        return self.name in _FACTORIES

    def is_pointwise(self) -> bool:
        """Whether every entry of the result depends on one entry of each argument."""
        tags: Sequence[torch.Tag] = self.function.tags  # type: ignore[attr-defined]  # of an OpOverload
        return torch.Tag.pointwise in tags or self.name in COPIES or self.name in _UNTAGGED

    def sides(self) -> int | None:
        """Return over how many last axes it pools or resizes; None if it does neither."""
        for start in (*_POOLED, *_RESIZED):
            if self.name.startswith(start):
                return next((int(sign) for sign in self.name if sign in "123"), None)
        return None

    def reduced(self, ndim: int) -> tuple[int, ...] | None:
        """Return the axes of a mean, sum, norm, extremum or softmax; None if it is none of these."""
        if self.name not in _REDUCTIONS and self.name not in _SOFTMAX:
            return None
        axes = self.arguments.get("dim")
        if isinstance(axes, int):
            axes = [axes]
        return tuple(axis % ndim for axis in axes) if axes else tuple(range(ndim))

    def keeps_axes(self) -> bool:
        """Whether what it reduced stays as an axis of length 1, or was not reduced at all."""
        return self.name in _SOFTMAX or bool(self.arguments.get("keepdim", False))

    def keeps_zero(self, is_zero: Callable[[Tensor], bool]) -> bool:
        """Return whether a pointwise operation gives 0 where the tensors of ``is_zero`` are 0.

        Tried on numbers: whatever the other tensors hold, the result must be 0.
        """
        if self.name in COPIES:
            return all(is_zero(tensor) for tensor in tensors(self.arguments))

        def probe(tensor: Tensor) -> Tensor:
            if is_zero(tensor):
                return torch.zeros(4, dtype=torch.float64)
            return _PROBE.clone() if tensor.is_floating_point() else (_PROBE > 0).to(tensor.dtype)

        result = self.run(probe)
        first: Tensor = result if isinstance(result, Tensor) else result[0]
        return bool((first == 0).all())


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of a call, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
