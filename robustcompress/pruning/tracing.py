"""Follow every channel through one run of the network: what passes it on, takes it in or mixes it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from robustcompress.pruning.copies import private_copy, run
from robustcompress.pruning.labels import NOBODY, PADDING, Labels, Ties, UnevenError
from robustcompress.pruning.operations import CUTS, MOVES, SPLITS, Call, tensors

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Normalisations of each channel by itself, whose weight and bias a mask can cover."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_BATCH_NORMS = frozenset((
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update", "batch_norm_with_update",
    "_batch_norm_no_update",
))  # fmt: skip
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a grouped convolution that takes one channel a group: whole groups go, with it."""
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels


class Trace(TorchDispatchMode):
    """The channels of a network, from one run of a private copy under torch's dispatcher.

    Every activation carries the numbers of its channels. Operations that move entries do the same to the
    numbers; operations entry by entry tie what they bring together; layers take channels in and make new
    ones. Whatever else happens to a channel, it must stay, and the reason is noted: an operation that is not
    known can freeze too much, never too little.

    Args:
        model: Left as it is, its mode and ``requires_grad`` included.
        example_inputs: float ``[batch, ...]``; the first two images are used.

    Attributes:
        ties: Channels of all layers that ran, what is tied and what must stay.
        misused: Layers whose parameters something else uses too, or instead, and what.
        shared: Layers one of whose parameters belongs to another module too, with the parameters' names.

    Raises:
        ModelError: If the network does not run.
    """

    def __init__(self, model: nn.Module, example_inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        twin = private_copy(model).eval()
        self.ties = Ties()
        self._layers = dict(twin.named_modules())
        self._running: list[str] = []
        self._labels: Any = WeakTensorKeyDictionary()
        self._views: Any = WeakTensorKeyDictionary()
        self._weights: dict[int, tuple[str, str]] = {}
        self.misused: dict[str, str] = {}
        owners: dict[int, list[str]] = {}
        for name, module in self._layers.items():
            for field, parameter in module.named_parameters(recurse=False):
                self._weights.setdefault(id(parameter), (name, field))
                owners.setdefault(id(parameter), []).append(f"{name}.{field}" if name else field)
        self.shared = {
            owner.rpartition(".")[0]: names for names in owners.values() if len(names) > 1 for owner in names
        }
        inputs = example_inputs[:2]
        # Gradients are enabled because transformers of torch take one opaque step for a whole layer without.
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        with torch.no_grad():
            run(twin, inputs)
        with self._noted(twin), torch.enable_grad(), self:
            logits = run(twin, inputs)
        if (labels := self._labels.get(logits)) is not None:
            self.ties.freeze(labels.numbers, "its channels are the network's outputs")
        for layer, reason in self.misused.items():
            self.ties.freeze_layer(layer, reason)
        for layer, names in self.shared.items():
            self.ties.freeze_layer(layer, f"its channels are tied to the shared parameter {names}")

    @contextmanager
    def _noted(self, twin: nn.Module) -> Generator[None]:
        """Keep a list of the modules that are running, for reasons that name them."""

        def enter(name: str) -> Callable[..., None]:
            return lambda module, arguments: self._running.append(name)

        def leave(module: nn.Module, arguments: object, output: object) -> None:
            self._running.pop()

        handles = [module.register_forward_pre_hook(enter(name)) for name, module in twin.named_modules()]
        handles += [module.register_forward_hook(leave) for module in twin.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call.of(func, args, kwargs or {})
        results = func(*args, **(kwargs or {}))
        try:
            self._follow(call, tensors(results))
        except UnevenError as error:
            self._lose(call, f"{self._where(call)}: {error}")
        except _FAILURES as error:
            # Following is a side effect: its failure must not stop the user's network, and freezes enough.
            self._lose(call, f"{self._where(call)}, which could not be followed ({type(error).__name__})")
        return results

    def _follow(self, call: Call, results: Sequence[Tensor]) -> None:
        if self._is_view_of_weight(call, results):
            return
        if call.name == "convolution" and self._convolution(call, results[0]):
            return
        if call.name in ("mm", "addmm") and self._linear(call, results[0]):
            return
        if call.name in _BATCH_NORMS and self._batch_norm(call, results[0]):
            return
        if not call.makes_new():
            self._follow_plain(call, results)

    def _follow_plain(self, call: Call, results: Sequence[Tensor]) -> None:
        """Follow an operation that belongs to no layer."""
        inputs = [tensor for tensor in tensors(call.arguments) if tensor in self._labels]
        bias = self._bias(call) if inputs and call.is_pointwise() else None
        for tensor in tensors(call.arguments):
            if (owner := self._owner(tensor)) is not None and tensor is not bias:
                self.misused[owner[0]] = f"its {owner[1]} passes through {call.title} before it is used"
        if not inputs:
            return
        if call.is_pointwise():
            self._pointwise(call, results[0], bias)
        elif call.name in MOVES:
            self._move(call, results)
        elif (sides := call.sides()) is not None:
            labels = self._labels[inputs[0]]
            if labels.axis >= inputs[0].ndim - sides:
                self._lose(call)
            else:
                self._labels[results[0]] = labels
        elif (axes := call.reduced(inputs[0].ndim)) is not None:
            labels = self._labels[inputs[0]]
            if labels.axis in axes:
                self._lose(call)
            else:
                before = 0 if call.keeps_axes() else sum(axis < labels.axis for axis in axes)
                zero = labels.zero and not call.name.endswith("softmax")
                for result in results:
                    self._labels[result] = Labels(labels.axis - before, labels.numbers, zero)
        else:
            self._lose(call)

    def _pointwise(self, call: Call, result: Tensor, bias: Tensor | None) -> None:
        """Tie the channels that an operation entry by entry brings together."""
        operands = tensors(call.arguments)
        labelled = [tensor for tensor in operands if tensor in self._labels]
        axes = {self._labels[tensor].axis + result.ndim - tensor.ndim for tensor in labelled}
        size = result.shape[min(axes)]
        in_place = any(result is tensor for tensor in operands) and result not in self._labels
        if len(axes) > 1 or in_place or any(len(self._labels[tensor].numbers) != size for tensor in labelled):
            self._lose(call)
            return
        (axis,) = axes
        where = self._where(call)
        numbers = self._labels[labelled[0]].numbers
        for tensor in operands:
            along = axis - result.ndim + tensor.ndim
            if tensor in self._labels:
                others = self._labels[tensor].numbers
                self.ties.unite(numbers, others, where)
                numbers = torch.maximum(numbers, others)
            elif tensor is bias:
                self.ties.unite(numbers, self.ties.numbers(self._weights[id(tensor)][0], 0, size), where)
            elif along >= 0 and tensor.shape[along] > 1:
                what = "a parameter" if isinstance(tensor, nn.Parameter) else "values"
                self.ties.freeze(numbers, f"{where}, where they meet {what} of a fixed size")

        def is_zero(tensor: Tensor) -> bool:
            return tensor is bias or (tensor in self._labels and self._labels[tensor].zero)

        self._labels[result] = Labels(axis, numbers, call.keeps_zero(is_zero))

    def _move(self, call: Call, results: Sequence[Tensor]) -> None:
        """Do to the numbers what the operation does to the entries."""
        inputs = [tensor for tensor in tensors(call.arguments) if tensor in self._labels]
        zero = all(self._labels[tensor].zero for tensor in inputs)
        where = self._where(call)
        if call.name.endswith("channel_shuffle"):
            groups = self._labels[inputs[0]].numbers.reshape(call.arguments["groups"], -1)
            self.ties.unite(groups[:1].expand_as(groups), groups, where)

        def spread(tensor: Tensor) -> Tensor:
            if tensor in self._labels:
                moved: Tensor = self._labels[tensor].spread(tensor.shape)
                return moved
            return torch.full(tensor.shape, float(NOBODY), dtype=torch.float64)

        fills = call.arguments.get("value", 0.0) in (0.0, float("-inf"))
        other = {"value": float(PADDING if fills else NOBODY)} if call.name == "constant_pad_nd" else {}
        found: list[Labels] = []
        for result, moved in zip(results, tensors(call.run(spread, **other)), strict=True):
            gathered = self.ties.gather(moved, where, moved.ndim - 3 if call.name == "pixel_shuffle" else -1)
            if gathered is not None:
                found.append(Labels(*gathered, zero))
                self._labels[result] = found[-1]
        numbers = self._labels[inputs[0]].numbers
        if call.name in CUTS and (not found or len(found[0].numbers) < len(numbers)):
            self.ties.freeze(numbers, f"{where}, which cuts out a fixed part of them")
        if call.name in SPLITS and found and len(found[0].numbers) < len(numbers):
            if len({(labels.axis, len(labels.numbers)) for labels in found}) > 1 or len(found) < len(results):
                self.ties.freeze(numbers, f"{where}, which cuts them into unequal parts")
                return
            for labels in found[1:]:
                self.ties.unite(found[0].numbers, labels.numbers, where)

    def _convolution(self, call: Call, result: Tensor) -> bool:
        """Follow a convolution layer; False if it is none."""
        images, weight = call.arguments["input"], call.arguments["weight"]
        owner = self._owner(weight)
        layer = self._layers[owner[0]] if owner else None
        if owner is None or owner[1] != "weight" or not isinstance(layer, CONVOLUTIONS):
            return False
        labels: Labels | None = self._labels.get(images)
        if labels is not None and labels.axis != 1:
            self._lose(call)
            labels = None
        made = self.ties.numbers(owner[0], 0, weight.shape[0])
        if is_depthwise(layer):
            if labels is not None:
                taken = labels.numbers.repeat_interleave(len(made) // layer.groups)
                self.ties.unite(taken, made, self._where(call))
            elif len(made) > 1:
                self.ties.freeze(made, "each of its channels is made of one that stays")
        else:
            if labels is not None:
                taken = self.ties.numbers(owner[0], 1, weight.shape[1])
                self._take(owner[0], labels, taken.repeat(layer.groups))
            each = made.reshape(layer.groups, -1)
            self.ties.unite(each[:1].expand_as(each), each, self._where(call))
        self._labels[result] = Labels(1, made, True)
        return True

    def _linear(self, call: Call, result: Tensor) -> bool:
        """Follow a linear layer; False if it is none."""
        features, weight = (call.arguments[name] for name in _factors(call))
        view = self._views.get(weight)
        bias = self._owner(call.arguments["self"]) if call.name == "addmm" else None
        layer = self._layers[view[0]] if view else None
        if view is None or view[1:] != ("weight", True) or not isinstance(layer, nn.Linear):
            return False
        if bias is None and call.name == "addmm":
            return False
        labels: Labels | None = self._labels.get(features)
        if labels is not None:
            if labels.axis == 1:
                self._take(view[0], labels, self.ties.numbers(view[0], 1, weight.shape[0]))
            else:
                self._lose(call)
        self._labels[result] = Labels(1, self.ties.numbers(view[0], 0, weight.shape[1]), True)
        return True

    def _take(self, layer: str, labels: Labels, taken: Tensor) -> None:
        """Tie channels to the inputs of the layer that takes them in."""
        known = labels.numbers >= 0
        self.ties.unite(labels.numbers[known], taken[known], f"its channels go to {layer!r}")
        self.ties.freeze(taken[~known], "it takes in what stays")
        if not labels.zero:
            self.ties.freeze(labels.numbers, f"its channels reach {layer!r} as something other than zero")

    def _batch_norm(self, call: Call, result: Tensor) -> bool:
        """Follow a batch normalisation; False if it is none or could not lose channels."""
        images, weight = call.arguments["input"], call.arguments.get("weight")
        labels: Labels | None = self._labels.get(images)
        if labels is None:
            return True
        owner = None if weight is None else self._owner(weight)
        layer = self._layers[owner[0]] if owner else None
        if weight is None and isinstance(self._innermost(), NORMS):
            reason = (
                f"{self._where(call)} with affine=False: a removed channel would leave a constant that no "
            )
            self.ties.freeze(labels.numbers, reason + "mask can cover")
            return True
        if owner is None or labels.axis != 1 or not isinstance(layer, NORMS):
            return False
        known = labels.numbers >= 0
        made = self.ties.numbers(owner[0], 0, len(known))
        self.ties.unite(labels.numbers[known], made[known], self._where(call))
        self.ties.freeze(made[~known], "it normalises what stays")
        self._labels[result] = Labels(1, labels.numbers, True)
        return True

    def _is_view_of_weight(self, call: Call, results: Sequence[Tensor]) -> bool:
        """Note that a result is a weight, perhaps transposed."""
        if call.name not in ("t", "transpose", "detach", "alias"):
            return False
        owner = self._owner(call.arguments.get("self"))
        if owner is None:
            return False
        (result,) = results
        turned = call.name in ("t", "transpose")
        view = self._views.get(call.arguments["self"], (*owner, False))
        self._views[result] = (*owner, view[2] != turned)
        return True

    def _owner(self, tensor: Tensor | None) -> tuple[str, str] | None:
        """Return layer and field of a parameter or of a view of one."""
        if tensor is None:
            return None
        view = self._views.get(tensor)
        return (view[0], view[1]) if view else self._weights.get(id(tensor))

    def _bias(self, call: Call) -> Tensor | None:
        """Return the bias that a linear layer adds in a step of its own."""
        for tensor in tensors(call.arguments):
            owner = self._owner(tensor)
            if owner and owner[1] == "bias" and isinstance(self._layers[owner[0]], nn.Linear):
                return tensor
        return None

    def _innermost(self) -> nn.Module:
        innermost: nn.Module = self._layers[self._running[-1] if self._running else ""]
        return innermost

    @staticmethod
    def _is_stock(module: nn.Module) -> bool:
        """Whether a module is one of torch's own layers, whose name says what it does."""
        return type(module).__module__.startswith("torch.nn") and not any(True for _ in module.children())

    def _where(self, call: Call) -> str:
        """Return what channels pass through, as the start of a reason."""
        module, name = self._innermost(), self._running[-1] if self._running else ""
        kind = type(module).__name__
        if self._is_stock(module):
            return f"its channels pass through {kind} {name!r}"
        inside = f" in {kind} {name!r}" if name else ""
        return f"its channels pass through {call.title}{inside}"

    def _lose(self, call: Call, reason: str = "") -> None:
        """Note that the channels of a call must stay."""
        if not reason:
            stock = self._is_stock(self._innermost())
            why = "from which none can be removed exactly" if stock else "which may mix, move or shift them"
            reason = f"{self._where(call)}, {why}"
        for tensor in tensors(call.arguments):
            if tensor in self._labels:
                self.ties.freeze(self._labels[tensor].numbers, reason)


def _factors(call: Call) -> tuple[str, str]:
    return ("mat1", "mat2") if call.name == "addmm" else ("self", "mat2")
