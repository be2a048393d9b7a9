from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from robustcompress.export.compact import Group, compact, matching
from robustcompress.export.decoder import EXACT
from robustcompress.export.densify import dense_model
from robustcompress.export.values import BITS, Coded, ValueType, code, value_bytes

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]
GROUPS: tuple[Group, ...] = ("layer", "net")
# Operators of which none may be left once a runtime has folded constants.
DECODERS = {"Cast", "CumSum", "Gather", "ScatterElements", "MatMul", "Reshape", "ConstantOfShape", "Split"}


def model_of(weights: Weights) -> ModelProto:
    """Give every weight an output, so that a runtime shows what it decoded."""
    nodes = [helper.make_node("Identity", [name], [f"out {name}"]) for name in weights]
    outputs = [
        helper.make_tensor_value_info(f"out {name}", TensorProto.FLOAT, array.shape)
        for name, array in weights.items()
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def sparse(shape: tuple[int, ...], density: float, seed: int = 0) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, size=shape, dtype=np.uint32)  # any float there is: NaN, subnormal, ...
    return np.where(random.random(shape) < density, bits, np.uint32(0)).view(np.float32)


def run(model: ModelProto, *, optimize: bool = True, save: Path | None = None) -> Weights:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimize else levels.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name.removeprefix("out ") for item in session.get_outputs()]
    return {name: np.asarray(found) for name, found in zip(names, session.run(None, {}), strict=True)}


def bits(array: npt.NDArray[np.float32]) -> bytes:
    """Return shape and bits, +0.0 for -0.0."""
    found = array.view(np.uint32).copy()
    found[found == 0x80000000] = 0
    return repr(array.shape).encode() + found.tobytes()


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert bits(found[name]) == bits(array), name


def assert_decodes(weights: Weights, group: Group, longest: int = EXACT) -> ModelProto:
    packed = compact(model_of(weights), group=group, longest=longest)
    onnx.checker.check_model(packed, full_check=True)
    assert_same(run(packed), weights)
    assert_same(run(packed, optimize=False), weights)
    dense = dense_model(packed)
    assert [node.op_type for node in dense.graph.node] == ["Identity"] * len(weights)
    assert_same({t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}, weights)
    return packed


@given(
    shapes=st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4),
    densities=st.lists(st.sampled_from([0.0, 0.003, 0.05, 0.1, 0.3, 0.6, 0.95, 1.0]), min_size=4, max_size=4),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_weights_come_back_bit_for_bit(
    shapes: list[tuple[int, ...]], densities: list[float], group: Group, seed: int
) -> None:
    weights = {
        f"layer.{place}.weight": sparse(shape, density, seed + place)
        for place, (shape, density) in enumerate(zip(shapes, densities, strict=False))
    }
    assert_decodes(weights, group)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", [4095, 4096, 4097, 4103])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.5])
def test_sizes_that_are_no_multiple_of_eight_are_right(group: Group, size: int, density: float) -> None:
    packed = assert_decodes({"weight": sparse((size,), density)}, group)
    assert packed.ByteSize() < 4 * size


@pytest.mark.parametrize("position", [0, 1, 40_000, 79_999, 80_000])
def test_a_single_weight_is_found_wherever_it_is_and_costs_no_mask(position: int) -> None:
    array = np.zeros(80_001, dtype=np.float32)
    array[position] = 3.5
    packed = assert_decodes({"weight": array}, "net")
    assert packed.ByteSize() < 1000


@given(seed=st.integers(0, 1000), longest=st.integers(30, 900), group=st.sampled_from(GROUPS))
@settings(max_examples=15, deadline=None)
def test_weights_longer_than_a_decoder_counts_are_decoded_in_pieces(
    seed: int, longest: int, group: Group
) -> None:
    weights = {
        "a": sparse((50, 20), 0.05, seed),
        "b": sparse((990,), 0.1, seed),
        "c": sparse((11, 90), 0.0, seed),
    }
    assert_decodes(weights, group, longest=longest)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_more_weights_than_float32_can_count_are_decoded_in_pieces(density: float) -> None:  # 30 s, 3 GB
    shape = (4099, 4103)
    assert shape[0] * shape[1] > EXACT
    random = np.random.default_rng(0)
    array = (random.standard_normal(shape) * (random.random(shape) < density)).astype(np.float32)
    packed = compact(model_of({"weight": array}), group="net")
    assert packed.ByteSize() < 0.6 * array.nbytes
    assert_same(run(packed), {"weight": array})
    assert_same(
        {"weight": numpy_helper.to_array(dense_model(packed).graph.initializer[0])}, {"weight": array}
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_more_whole_numbers_than_float32_can_count_are_decoded(kind: ValueType) -> None:  # 60 s, 3 GB
    random = np.random.default_rng(0)
    array = (random.standard_normal((4099, 4103)) * (random.random((4099, 4103)) < 0.01)).astype(np.float32)
    coded = code(array, kind)
    packed = compact(model_of({"weight": coded.values}), group="net", coded={"weight": coded})
    assert packed.ByteSize() < 0.01 * array.nbytes
    assert_same(run(packed), {"weight": coded.values})


@pytest.mark.parametrize("group", GROUPS)
def test_the_runtime_folds_every_decoder_into_a_dense_constant(group: Group, tmp_path: Path) -> None:
    weights = {
        "rice": sparse((64, 64), 0.1),
        "mask": sparse((64, 65), 0.6),
        "empty": np.zeros((64, 66), dtype=np.float32),
        "dense": sparse((8, 8), 1.0),
    }
    packed = compact(model_of(weights), group=group)
    assert {node.op_type for node in packed.graph.node} >= DECODERS - (
        {"Split"} if group == "layer" else set()
    )
    assert_same(run(packed, save=tmp_path / "optimized.onnx"), weights)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert not {node.op_type for node in optimized.graph.node} & DECODERS
    folded = {tensor.name: numpy_helper.to_array(tensor) for tensor in optimized.graph.initializer}
    by_content = {bits(array) for array in folded.values()}
    assert by_content >= {bits(array) for array in weights.values()}


KINDS: tuple[ValueType, ...] = ("float16", "int8", "int6", "int4")


@given(
    shapes=st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4),
    densities=st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), min_size=4, max_size=4),
    kinds=st.lists(st.sampled_from((*KINDS, "float32")), min_size=4, max_size=4),
    group=st.sampled_from(GROUPS),
    longest=st.sampled_from([50, EXACT]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_values_in_fewer_bits_come_back_as_numpy_computes_them(
    shapes: list[tuple[int, ...]],
    densities: list[float],
    kinds: list[ValueType],
    group: Group,
    longest: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    weights: Weights = {}
    coded: dict[str, Coded] = {}
    for place, (shape, density, kind) in enumerate(zip(shapes, densities, kinds, strict=False)):
        name = f"layer.{place}.weight"
        weights[name] = (random.standard_normal(shape) * (random.random(shape) < density)).astype(np.float32)
        if kind != "float32":
            coded[name] = code(weights[name], kind)
            weights[name] = coded[name].values
    model = model_of(weights)
    assert matching(model, coded) == coded
    packed = compact(model, group=group, coded=coded, longest=longest)
    onnx.checker.check_model(packed, full_check=True)
    assert_same(run(packed), weights)
    assert_same(run(packed, optimize=False), weights)
    assert_same({t.name: numpy_helper.to_array(t) for t in dense_model(packed).graph.initializer}, weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.02, 1.0])
def test_values_in_fewer_bits_take_the_bytes_they_should_and_are_folded(
    kind: ValueType, density: float, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    array = (random.standard_normal((200, 500)) * (random.random((200, 500)) < density)).astype(np.float32)
    coded = code(array, kind)
    model = model_of({"weight": coded.values})
    packed = compact(model, group="net", coded={"weight": coded})
    positions = compact(model, group="net").ByteSize() - 4 * np.count_nonzero(coded.codes)
    expected = value_bytes(coded) + positions
    if density == 1:
        expected = array.size * BITS.get(kind, 16) // 8 + 2 * len(array)
    assert packed.ByteSize() == pytest.approx(expected, abs=1300)
    run(packed, save=tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert not {node.op_type for node in optimized.graph.node} & (DECODERS | {"Mul", "Slice"})


def test_bits_that_give_back_something_else_are_not_used() -> None:
    array = code(np.ones((3, 4), dtype=np.float32), "int8").values
    model = model_of({"same": array, "other": 3 * array})
    coded = {"same": code(array, "int8"), "other": code(2 * array, "int8")}
    assert matching(model, coded) == {"same": coded["same"]}


def test_bits_are_found_under_another_name_and_transposed() -> None:
    random = np.random.default_rng(0)
    coded = code(random.standard_normal((30, 50)).astype(np.float32), "int8")
    weights = {"renamed": coded.values, "turned": np.ascontiguousarray(coded.values.T)}
    model = model_of(weights)
    found = matching(model, {"weight": coded})
    assert {name: item.axis for name, item in found.items()} == {"renamed": 0, "turned": 1}
    packed = compact(model, group="net", coded=found)
    assert_same(run(packed), weights)
    assert packed.ByteSize() < 2 * 1500 + 550


def test_a_mask_is_smaller_than_rice_for_dense_weights_and_dense_is_smallest_for_full_ones() -> None:
    def operators(density: float) -> set[str]:
        packed = compact(model_of({"weight": sparse((100, 100), density)}), group="layer")
        return {node.op_type for node in packed.graph.node}

    assert "ScatterElements" in operators(0.1)
    assert "ScatterElements" not in operators(0.6)
    assert "CumSum" in operators(0.6)
    assert operators(1.0) == {"Identity"}


def test_negative_zeros_are_removed_weights_too() -> None:
    array = np.full((40, 40), -0.0, dtype=np.float32)
    array[0, 0] = -1.0
    packed = compact(model_of({"weight": array}), group="net")
    (found,) = run(packed).values()
    assert (
        found.view(np.uint32).tolist() == np.where(array == 0, np.float32(0), array).view(np.uint32).tolist()
    )


def test_a_net_of_many_layers_needs_one_decoder_for_each_density() -> None:
    weights = {f"w{place}": sparse((100, 100), 0.1, place) for place in range(6)}
    weights |= {f"v{place}": sparse((300, 300), 0.002, place) for place in range(2)}

    def scatters(group: Group) -> int:
        packed = compact(model_of(weights), group=group)
        return sum(node.op_type == "ScatterElements" for node in packed.graph.node)

    assert (scatters("layer"), scatters("net")) == (8, 2)


def test_net_is_never_larger_than_layer() -> None:
    for seed in range(5):
        weights = {f"w{n}": sparse((30, 30 + n), 0.02 * (n + 1), seed + n) for n in range(8)}
        sizes = {group: compact(model_of(weights), group=group).ByteSize() for group in GROUPS}
        assert sizes["net"] <= sizes["layer"]


def test_no_name_of_the_decoder_collides_with_a_name_in_the_graph() -> None:
    short = [*"0123456789abcdefghijklmnopqrstuvwxyz", "00", "01", "02"]
    weights = {name: sparse((400 + place,), 0.05, place) for place, name in enumerate(short)}
    for group in GROUPS:
        assert_decodes(weights, group)


def test_initializers_that_are_inputs_or_of_other_types_stay() -> None:
    zeros = np.zeros(5000, dtype=np.float32)
    model = model_of({"constant": zeros, "default": zeros})
    model.graph.input.append(helper.make_tensor_value_info("default", TensorProto.FLOAT, [5000]))
    model.graph.initializer.append(numpy_helper.from_array(zeros.astype(np.float16), "half"))
    packed = compact(model, group="net")
    assert {tensor.name for tensor in packed.graph.initializer} >= {"default", "half"}
    assert "constant" not in {tensor.name for tensor in packed.graph.initializer}


def test_the_model_itself_is_not_changed_and_equal_input_gives_equal_bytes() -> None:
    model = model_of({"weight": sparse((50, 50), 0.1), "other": sparse((60, 60), 0.02)})
    before = model.SerializeToString(deterministic=True)
    first, second = (compact(model, group="net").SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before
    assert len(first) < len(before)
