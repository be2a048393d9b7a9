"""Follow through one run of the network which values depend on the images and which are always the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from robustcompress.pruning.copies import private_copy, run
from robustcompress.pruning.operations import MOVES, Call, tensors
from robustcompress.pruning.readings import Reading
from robustcompress.pruning.tracing import CONVOLUTIONS, NORMS

_PRODUCTS = {"mm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "bmm": ("self", "mat2")}
_SIGNED = ("bicubic", "_aa")
"""Ways to resize that subtract pixels, which can hide that a pixel counts."""

_BY_PLACE = frozenset(("as_strided", "_reshape_alias"))


class _UnknownError(Exception):
    """An operation whose results may depend on everything it takes."""


class Dependence(TorchDispatchMode):
    """Which values of one run depend on the images.

    Every activation carries marks, one for each entry: positive where the entry depends on the images. A
    weight of exactly zero passes no dependence on, nor does a product with a constant zero; everything else
    does, whatever its numbers are, so that an activation that happens to be zero on these images is not
    taken for a constant. An operation that is not known marks all of its results. Marks lie in memory as
    the activations do, so that views of an activation share its marks and changes in place reach them.

    Args:
        model: In float64 and eval mode; left as it is.
        images: float64 ``[batch, ...]``.

    Attributes:
        readings: By layer, what each call of it took in.
        means: By layer, the batch normalisation that takes all of its outputs, and nothing else's.

    Raises:
        ModelError: If the network does not run.

    Source:
        Taint analysis (Denning and Denning 1977, https://doi.org/10.1145/359636.359712), over tensors.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        twin = private_copy(model)
        self.readings: dict[str, list[Reading]] = {}
        self._marks: Any = WeakTensorKeyDictionary()
        self._turned: Any = WeakTensorKeyDictionary()
        self._made: Any = WeakTensorKeyDictionary()
        self._goes: dict[str, set[str]] = {}
        self._comes: dict[str, set[str]] = {}
        self._lost = False
        self._weights = {
            id(parameter): (name, field)
            for name, module in twin.named_modules()
            for field, parameter in module.named_parameters(recurse=False)
        }
        self._layers = dict(twin.named_modules())
        self._statistics = {
            id(module.running_mean): name
            for name, module in self._layers.items()
            if isinstance(module, NORMS) and module.running_mean is not None
        }
        # As in Trace: without gradients some of torch's layers take one opaque step.
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        parameter = next(twin.parameters())
        inputs = images.detach().to(parameter.device)
        self._marks[inputs] = torch.ones_like(inputs, dtype=torch.float32)
        with torch.enable_grad(), self:
            run(twin, inputs)
        if self._lost:
            self.readings = {}
        self.means = {
            layer: next(iter(goes))
            for layer, goes in self._goes.items()
            if len(goes) == 1 and "" not in goes and self._comes[next(iter(goes))] == {layer}
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call.of(func, args, kwargs or {})
        self._note_reading(call)
        self._note_uses(call)
        is_view = _is_view(func)
        found = False if is_view else self._found(call)  # before the call, which may overwrite what it takes
        results = func(*args, **(kwargs or {}))
        made = tensors(results)
        if is_view:
            self._view(call, made)
        else:
            self._mark(call, made, found)
        if call.name in ("convolution", *_PRODUCTS) and (layer := self._reader(call)) is not None:
            self._made[made[0]] = layer
            self._goes.setdefault(layer, set())
        return results

    def _of(self, tensor: Tensor) -> Tensor:
        """Return the marks of a tensor; those of parameters and buffers are all zero."""
        if tensor not in self._marks:
            self._marks[tensor] = torch.zeros_like(tensor, dtype=torch.float32)
        marks: Tensor = self._marks[tensor]
        return marks

    def _found(self, call: Call) -> list[Tensor] | bool:
        """Return the marks of the results, each to be broadcast, or one answer for all of them."""
        tags: Sequence[torch.Tag] = call.function.tags  # type: ignore[attr-defined]  # of an OpOverload
        if torch.Tag.nondeterministic_seeded in tags:
            return True
        depends = any(bool(self._of(tensor).any()) for tensor in tensors(call.arguments))
        if not depends or call.makes_new():
            return False
        # Numbers and shapes that leave for Python, where nobody follows them.
        self._lost |= torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
        try:
            return self._follow(call)
        except (_UnknownError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
            return True

    def _follow(self, call: Call) -> list[Tensor]:
        """Return the marks of the results of an operation that takes something that depends on images."""
        if call.name == "convolution":
            return [self._linear(call, call.arguments["input"], call.arguments["weight"])]
        if call.name in _PRODUCTS:
            first, second = (call.arguments[name] for name in _PRODUCTS[call.name])
            return [self._product(call, first, second)]
        if "batch_norm" in call.name:
            return self._batch_norm(call)
        if call.is_pointwise():
            return [self._pointwise(call)]
        if call.name in MOVES:
            fill = {"value": 0.0} if call.name == "constant_pad_nd" else {}
            return tensors(call.run(self._of, **fill))
        if call.sides() is not None and not any(part in call.name for part in _SIGNED):
            pooled = tensors(call.run(self._of))
            return [pooled[0]] * len(pooled)
        subject = call.arguments.get("self")
        if isinstance(subject, Tensor) and (axes := call.reduced(subject.ndim)) is not None:
            return [self._of(subject).amax(axes, keepdim=call.keeps_axes())] * 2
        raise _UnknownError

    def _linear(self, call: Call, images: Tensor, weight: Tensor) -> Tensor:
        """Run a convolution on marks: an output depends on what it has a weight on."""
        bias = call.arguments.get("bias")
        if any(bool(self._of(tensor).any()) for tensor in (weight, bias) if tensor is not None):
            raise _UnknownError

        def marks(tensor: Tensor) -> Tensor:
            if tensor is images:
                return self._of(images)
            return (tensor != 0).to(torch.float32) if tensor is weight else torch.zeros_like(self._of(tensor))

        counts: Tensor = call.run(marks)
        return (counts > 0.5).to(torch.float32)  # fast convolutions leave rounding where nothing is counted

    def _product(self, call: Call, first: Tensor, second: Tensor) -> Tensor:
        left, right = self._of(first), self._of(second)
        if bool(left.any()) and bool(right.any()):
            raise _UnknownError
        if bool(left.any()):
            right = (second != 0).to(torch.float32)
        else:
            left = (first != 0).to(torch.float32)
        found = (left @ right > 0.5).to(torch.float32)
        return torch.maximum(found, self._of(call.arguments["self"])) if call.name == "addmm" else found

    def _batch_norm(self, call: Call) -> list[Tensor]:
        images, weight = call.arguments["input"], call.arguments.get("weight")
        marks = self._of(images)
        view = [1, -1] + [1] * (marks.ndim - 2)
        if call.arguments.get("training", False):  # a batch's own statistics bring all of a channel together
            others = [axis for axis in range(marks.ndim) if axis != 1]
            marks = marks.amax(others, keepdim=True)
        if weight is not None:
            marks = marks * (weight != 0).reshape(view)
        return [marks, marks.new_ones(()), marks.new_ones(())]

    def _pointwise(self, call: Call) -> Tensor:
        if call.name == "copy":
            return self._of(call.arguments["src"])
        parts = tensors(call.arguments)
        marks = [self._of(part) for part in parts]
        if call.name == "mul" and len(parts) == 2:
            # A constant zero times anything is zero: a removed channel behind a gate of its own.
            alive = [(part != 0) | (mark > 0) for part, mark in zip(parts, marks, strict=True)]
            return torch.maximum(marks[0] * alive[1], marks[1] * alive[0])
        found = marks[0]
        for mark in marks[1:]:
            found = torch.maximum(found, mark)
        return found

    def _view(self, call: Call, results: Sequence[Tensor]) -> None:
        """Give views the same views of the marks."""
        try:
            views = tensors(call.run(self._of))
        except (RuntimeError, TypeError, ValueError):
            self._lost = True
            return
        for result, marks in zip(results, views, strict=True):
            # Some views name places in memory: right only where the marks lie as the values do.
            self._lost |= call.name in _BY_PLACE and marks.stride() != result.stride()
            self._lost |= marks.shape != result.shape
            self._marks[result] = marks
        owner = self._weights.get(id(call.arguments.get("self")))
        if owner is not None and owner[1] == "weight" and call.name in ("t", "transpose"):
            self._turned[results[0]] = owner[0]

    def _mark(self, call: Call, results: Sequence[Tensor], found: list[Tensor] | bool) -> None:
        """Write the marks of results, into those of a tensor that was changed in place."""
        everything = torch.ones(())
        for index, result in enumerate(results):
            if isinstance(found, bool) or index >= len(found):
                marks = everything if found else torch.zeros(())
            else:
                marks = found[index]
            target = self._of(result)
            # A network that changes its own parameters while it runs is not followed.
            self._lost |= id(result) in self._weights or id(result) in self._statistics
            target.copy_(marks.expand(target.shape) if _fits(marks, target) else everything)
        self._note_changes(call, results, found)

    def _note_changes(self, call: Call, results: Sequence[Tensor], found: list[Tensor] | bool) -> None:
        """Mark what an operation wrote into besides what it returned."""
        if found is False or "batch_norm" in call.name:
            return
        for argument in call.function._schema.arguments:  # type: ignore[attr-defined]  # of an OpOverload
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(call.arguments.get(argument.name)):
                    if not any(tensor is result for result in results):
                        self._of(tensor).fill_(1.0)

    def _reader(self, call: Call) -> str | None:
        """Return the layer whose weight a convolution or matrix product uses as that layer does."""
        if call.name == "convolution":
            owner = self._weights.get(id(call.arguments["weight"]))
            fits = owner is not None and owner[1] == "weight" and not call.arguments["transposed"]
            return owner[0] if owner and fits and isinstance(self._layers[owner[0]], CONVOLUTIONS) else None
        if call.name in ("mm", "addmm"):
            layer: str | None = self._turned.get(call.arguments["mat2"])
            return layer if layer is not None and isinstance(self._layers[layer], nn.Linear) else None
        return None

    def _note_reading(self, call: Call) -> None:
        layer = self._reader(call)
        if layer is None:
            return
        convolution = call.name == "convolution"
        inputs = call.arguments["input" if convolution else _PRODUCTS[call.name][0]]
        bias = call.arguments.get("bias" if convolution else "self")
        padded = convolution and any(call.arguments["padding"])
        biased = bias is not None and self._weights.get(id(bias)) == (layer, "bias")
        reading = Reading.of(inputs, self._of(inputs), padded=padded, biased=biased)
        self.readings.setdefault(layer, []).append(reading)

    def _note_uses(self, call: Call) -> None:
        """Note where the outputs of layers go: to which normalisation, or elsewhere (``""``)."""
        mean = call.arguments.get("running_mean") if "batch_norm" in call.name else None
        norm = "" if mean is None or call.arguments.get("training") else self._statistics.get(id(mean), "")
        for tensor in tensors(call.arguments):
            if tensor in self._made:
                self._goes[self._made[tensor]].add(norm)
        if norm:
            self._comes.setdefault(norm, set()).add(self._made.get(call.arguments["input"], ""))


def _is_view(function: Any) -> bool:
    """Whether results share memory with an argument that is not changed."""
    returns = function._schema.returns
    return any(item.alias_info is not None and not item.alias_info.is_write for item in returns)


def _fits(marks: Tensor, target: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(marks.shape, target.shape) == target.shape)
    except RuntimeError:
        return False
