"""Files that lie, burst or are damaged: one clear error each, and no memory beyond what they hold."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from robustcompress.errors import ExportError, RobustCompressError, StorageError
from robustcompress.export.claims import bare_sha256, read_claims
from robustcompress.export.compact import compact
from robustcompress.export.densify import dense_model
from robustcompress.export.expansion import check_expansion, made_bytes
from robustcompress.export.network import read_network
from robustcompress.export.onnx_file import inspect_file, read_model
from robustcompress.export.session import OnnxSession

Array = npt.NDArray[Any]
PIECES = 60


def plain(weight: Array) -> ModelProto:
    """``logits = images @ weight``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["images", "weight"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(made, {"robustcompress.claims": '{"schema_version": 1}'})
    return made


def sparse_weight() -> Array:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 40)).astype(np.float32)
    return np.where(generator.random(weight.shape) < 0.95, np.float32(0), weight)


@pytest.fixture(scope="module")
def compacted() -> bytes:
    """A small compact file."""
    model = plain(sparse_weight())
    found = compact(model, group="net")
    assert len(found.graph.node) > len(model.graph.node)
    data: bytes = found.SerializeToString(deterministic=True)
    return data


def load(data: bytes) -> None:
    """Give a file to everything that reads one."""
    session = OnnxSession(data)
    session(torch.zeros(2, *(size or 1 for size in session.input_shape[1:])))
    inspect_file(data)
    network = read_network(data)
    with torch.no_grad():
        network(torch.zeros(2, 64))


def loads_or_is_refused(data: bytes) -> bool:
    """Return whether a damaged file is refused; whatever is not one of our errors fails the test."""
    try:
        load(data)
    except RobustCompressError as error:
        return bool(str(error).strip())
    except RuntimeError:  # of shapes, where the damaged graph runs on other images than the test gives it
        return False
    return False


def test_a_file_cut_anywhere_is_refused(compacted: bytes) -> None:
    """Protobuf marks no end: a file cut between two fields of the model is one without the last of them."""
    load(compacted)
    refused = [
        loads_or_is_refused(compacted[:cut]) for cut in range(0, len(compacted), len(compacted) // PIECES)
    ]
    assert sum(refused) >= len(refused) - 2


@pytest.mark.parametrize("seed", range(PIECES))
def test_a_file_with_flipped_bits_is_refused_or_computes_something(compacted: bytes, seed: int) -> None:
    generator = np.random.default_rng(seed)
    damaged = bytearray(compacted)
    for place in generator.integers(len(damaged), size=1 + seed % 3):
        damaged[place] ^= 1 << int(generator.integers(8))
    loads_or_is_refused(bytes(damaged))


def changed(change: Callable[[ModelProto], object]) -> bytes:
    model = plain(sparse_weight())
    change(model)
    data: bytes = model.SerializeToString()
    return data


def weight_of(model: ModelProto) -> TensorProto:
    weight: TensorProto = model.graph.initializer[0]
    return weight


def claim_dims(*dims: int) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        del weight_of(model).dims[:]
        weight_of(model).dims.extend(dims)

    return change


def make_external(model: ModelProto) -> None:
    weight_of(model).ClearField("raw_data")
    weight_of(model).data_location = TensorProto.EXTERNAL
    weight_of(model).external_data.add(key="location", value="../../../etc/passwd")


def hide_external(model: ModelProto) -> None:
    inner = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
    inner.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value", t=inner, type=AttributeProto.TENSOR))
    branch = helper.make_graph([node], "branch", [], [])
    outer = NodeProto(op_type="If", input=["cond"], output=["y"])
    outer.attribute.append(AttributeProto(name="then_branch", g=branch, type=AttributeProto.GRAPH))
    model.graph.node.append(outer)


def add_sparse(dims: list[int], places: list[int]) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        values = numpy_helper.from_array(np.ones(2, np.float32), "s")
        where = numpy_helper.from_array(np.array(places, np.int64), "s.places")
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(values)
        sparse.indices.CopyFrom(where)
        sparse.dims.extend(dims)

    return change


def break_weight(model: ModelProto) -> None:
    weight_of(model).data_type = 77


def numbers_twice(model: ModelProto) -> None:
    weight_of(model).ClearField("raw_data")
    weight_of(model).float_data.extend([1.0, 2.0])


LIES: list[tuple[str, Callable[[ModelProto], object]]] = [
    (r"'weight' lies in another file, and none but the model itself is ever opened", make_external),
    (r"'c' lies in another file", hide_external),
    (
        r"'weight' of shape \[64, 1000000000000\] needs 256000000000000 entries and holds 10240",
        claim_dims(64, 10**12),
    ),
    (r"'weight' of shape \[64, 39\] needs 9984 entries and holds 10240", claim_dims(64, 39)),
    (r"'weight' of shape \[64, 40\] needs 2560 entries and holds 2", numbers_twice),
    (r"'weight' has the shape \[64, -40\]", claim_dims(64, -40)),
    (r"'weight' is of the unknown type 77", break_weight),
    (r"the value 'weight' occurs twice", lambda m: m.graph.initializer.append(weight_of(m))),
    (r"the value 'logits' occurs twice", lambda m: m.graph.node.append(m.graph.node[0])),
    (r"the input 'images' occurs twice", lambda m: m.graph.input.append(m.graph.input[0])),
    (
        r"the metadata key 'robustcompress.claims' occurs twice",
        lambda m: m.metadata_props.append(m.metadata_props[0]),
    ),
    (r"the operator set '' occurs twice", lambda m: m.opset_import.append(m.opset_import[0])),
    (
        r"sparse constant 's' of shape \[1000000, 1000000\] would take 4000000000000 bytes",
        add_sparse([10**6] * 2, [0, 1]),
    ),
    (r"sparse constant 's' has other numbers of places and values", add_sparse([4], [0, 1, 2])),
    (r"sparse constant 's' names places outside of its shape \[4\]", add_sparse([4], [0, 4])),
]


@pytest.mark.parametrize(("message", "change"), LIES, ids=[message[:40] for message, _ in LIES])
def test_a_file_that_lies_is_refused_by_whoever_reads_it(
    message: str, change: Callable[[ModelProto], object]
) -> None:
    data = changed(change)
    for reader in (read_model, inspect_file, OnnxSession, read_network):
        with pytest.raises(ExportError, match=message):
            reader(data)


def test_constants_of_every_stored_type_pass() -> None:
    model = plain(sparse_weight())
    raw: tuple[type[np.generic], ...] = (
        np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint64, np.bool_, np.complex64,
    )  # fmt: skip
    for kind in raw:
        model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 5), kind), f"raw {kind.__name__}"))
    fields: dict[int, list[Any]] = {
        TensorProto.FLOAT: [1.0, 2.0, 3.0],
        TensorProto.FLOAT16: [1.0, 2.0, 3.0],
        TensorProto.INT4: [1, 2, 3],
        TensorProto.COMPLEX64: [1j, 2j, 3j],
        TensorProto.STRING: [b"a", b"b", b"c"],
        TensorProto.UINT64: [1, 2, 3],
    }
    for field, values in fields.items():
        model.graph.initializer.append(helper.make_tensor(f"field {field}", field, [3], values))
    read_model(model.SerializeToString())


def burst(nodes: list[NodeProto], constants: dict[str, Array]) -> bytes:
    """``logits = images @ weight + first element of what the nodes make``, in a few hundred bytes."""
    model = plain(sparse_weight())
    model.graph.node[0].output[0] = "product"
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for name in ("zero", "axis"):
        model.graph.initializer.append(
            numpy_helper.from_array(np.zeros(1 if name == "zero" else (), np.int64), name)
        )
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("Gather", ["made", "zero"], ["one"], axis=0))
    model.graph.node.append(helper.make_node("ReduceSum", ["one"], ["least"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["product", "least"], ["logits"]))
    data: bytes = model.SerializeToString()
    assert len(data) < 20_000
    return data


def doubling(times: int) -> list[NodeProto]:
    names = ["seed", *(f"d{number}" for number in range(times - 1)), "made"]
    return [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]


BURSTS = {
    "zeros": ([helper.make_node("ConstantOfShape", ["n"], ["made"])], {"n": np.array([10**13])}),
    "overflow": ([helper.make_node("ConstantOfShape", ["n"], ["made"])], {"n": np.array([2**40, 2**40])}),
    "expand": (
        [helper.make_node("Expand", ["seed", "n"], ["made"])],
        {"seed": np.ones(1, np.float32), "n": np.array([10**12])},
    ),
    "tile": (
        [helper.make_node("Tile", ["seed", "n"], ["made"])],
        {"seed": np.ones(1, np.float32), "n": np.array([10**12])},
    ),
    "range": (
        [helper.make_node("Range", ["start", "end", "step"], ["made"])],
        {"start": np.array(0.0, np.float32), "end": np.array(1e12, np.float32),
         "step": np.array(1.0, np.float32)},
    ),
    "doubling": (doubling(45), {"seed": np.ones(1, np.float32)}),
    "gather": (
        [
            helper.make_node("ConstantOfShape", ["n"], ["column"]),
            helper.make_node("MatMul", ["column", "row"], ["made"]),
            ],
        {"n": np.array([10**7, 1]), "row": np.ones((1, 1000), np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BURSTS)
def test_a_small_file_that_decodes_to_terabytes_is_refused_before_anything_is_made(kind: str) -> None:
    data = burst(*BURSTS[kind])
    tracemalloc.start()
    with pytest.raises(ExportError, match=r"would take [\d,]+ bytes at once.*at most 8,589,934,592"):
        OnnxSession(data)
    with pytest.raises(ExportError, match=r"would take [\d,]+ bytes at once"):
        read_network(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_values_that_are_no_longer_needed_do_not_count() -> None:
    """A chain of a hundred values of 40 MB needs two of them at once."""
    names = ["start", *(f"n{number}" for number in range(99)), "made"]
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["start"])]
    nodes += [helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)]
    model = onnx.load_model_from_string(burst(nodes, {"n": np.array([10**7])}))
    check_expansion(model, name="x", most=10**8)
    with pytest.raises(ExportError, match=r"x: its values would take 80,\d{3},\d{3} bytes at once"):
        check_expansion(model, name="x", most=7 * 10**7)


def test_decoded_values_that_are_no_longer_needed_do_not_count() -> None:
    names = ["start", *(f"n{number}" for number in range(29)), "made"]
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["start"])]
    nodes += [helper.make_node("Add", [a, a], [b]) for a, b in pairwise(names)]
    model = onnx.load_model_from_string(burst(nodes, {"n": np.array([10**5])}))
    assert len(dense_model(model, most=10**6).graph.initializer) >= 1
    with pytest.raises(ExportError, match=r"it makes 400,000 bytes, .* are left"):
        dense_model(model, most=7 * 10**5)


def test_a_range_without_end_is_refused() -> None:
    node = helper.make_node("Range", ["start", "end", "step"], ["made"])
    numbers = [np.array(number, np.float32) for number in (0.0, np.inf, 1.0)]
    with pytest.raises(ValueError, match="a range from 0 to inf by 1 never ends"):
        made_bytes(node, numbers, {"": 18})
    with pytest.raises(ValueError, match="never ends"):
        made_bytes(node, [numbers[0], numbers[2], numbers[0]], {"": 18})


def test_what_a_node_of_constants_makes_is_known_before() -> None:
    ones = np.ones(5000, np.float32)
    assert made_bytes(helper.make_node("Add", ["a", "a"], ["b"]), [ones, ones], {"": 18}) == 20_000
    depth = [np.zeros(5, np.int64), np.array(10**12), np.array([0, 1])]
    assert made_bytes(helper.make_node("OneHot", ["i", "d", "v"], ["b"]), depth, {"": 18}) >= 4 * 5 * 10**12


def test_shapes_that_contradict_each_other_are_refused() -> None:
    model = plain(sparse_weight())
    model.graph.node[0].op_type = "Conv"
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        OnnxSession(model.SerializeToString())


@pytest.mark.parametrize("text", ["no JSON", "[1]", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}'])
def test_claims_that_are_no_object_of_json_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.onnx"
    model = plain(sparse_weight())
    helper.set_model_props(model, {"robustcompress.claims": text})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"model\.onnx: its claims.*Evaluate"):
        read_claims(path)
    assert len(bare_sha256(path)) == 64


def test_what_is_no_file_or_too_large_for_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a regular file"):
        read_model(tmp_path)
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # sparse: takes no room
    for reader in (read_model, OnnxSession, bare_sha256):
        with pytest.raises(StorageError, match="expected at most 2147483648 bytes"):
            reader(path)
