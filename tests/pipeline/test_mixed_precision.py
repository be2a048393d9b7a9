"""Bits for each layer, by what they cost."""

import itertools

import torch
from torch import nn

from robustcompress.export.formats import Format
from robustcompress.export.rounding import layer_kinds, round_values
from robustcompress.export.values import BITS, ValueType
from robustcompress.pipeline.mixed_precision import at_largest, mixed_values

KINDS: tuple[ValueType, ...] = ("int4", "int6", "int8", "float32")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def error(candidate: nn.Module) -> float:
    """Return how far logits move on average."""
    torch.manual_seed(1)
    images = torch.randn(64, 12)
    with torch.no_grad():
        return float((candidate(images) - network()(images)).abs().mean())


def judge(candidate: nn.Module) -> tuple[int, int]:
    return 1000 - round(5000 * error(candidate)), 1000


def bits(values: dict[str, ValueType]) -> int:
    layers = {name: part for name, part in network().named_modules() if isinstance(part, nn.Linear)}
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    return sum(sizes[name] * BITS.get(kind, 32) for name, kind in values.items())


def test_no_drop_allowed_leaves_every_weight_in_float32() -> None:
    found = mixed_values(network(), judge, largest_drop=0.0)
    assert set(found.values.values()) == {"float32"}
    assert (found.before, found.after, found.count) == (1000, 1000, 1000)


def test_any_drop_allowed_gives_all_layers_the_fewest_bits_at_once() -> None:
    found = mixed_values(network(), judge, largest_drop=1.0)
    assert set(found.values.values()) == {"int4"}
    assert found.tried == 2


def test_what_is_chosen_stays_within_the_drop_and_one_step_fewer_anywhere_does_not() -> None:
    for drop in (0.005, 0.02, 0.03):
        found = mixed_values(network(), judge, largest_drop=drop)
        assert judge(round_values(network(), found.values).network)[0] == found.after >= 1000 * (1 - drop)
        common = max(found.values.values(), key=KINDS.index)
        fewer: list[ValueType] = [kind for kind in KINDS if KINDS.index(kind) < KINDS.index(common)]
        for kind in fewer:
            everywhere = layer_kinds(network(), {"*": kind})
            assert judge(round_values(network(), everywhere).network)[0] < 1000 * (1 - drop)


def test_layers_differ_where_that_pays_and_the_choice_is_near_the_best_of_all() -> None:
    drop = 0.02
    found = mixed_values(network(), judge, largest_drop=drop)
    assert len(set(found.values.values())) > 1
    within = [
        bits(values)
        for kinds in itertools.product(KINDS, repeat=len(found.values))
        if judge(round_values(network(), values := dict(zip(found.values, kinds, strict=True))).network)[0]
        >= 1000 * (1 - drop)
    ]
    assert min(within) <= bits(found.values) <= 1.5 * min(within)


def test_a_trial_is_written_at_its_largest_and_other_formats_as_they_are() -> None:
    mixed = Format.find({"kind": "onnx", "values": "mixed", "largest_drop": 0.02})
    assert at_largest(mixed) == Format.find({"kind": "onnx", "largest_drop": 0.02})
    small = Format.find({"kind": "onnx", "values": "int4"})
    assert at_largest(small) is small
