import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, TensorProto, helper, numpy_helper

from robustcompress.export.graph_writer import GraphWriter, ShortNames, names_in, small_tensor


@given(taken=st.sets(st.text("0123z", min_size=1, max_size=2)))
def test_names_are_new_and_never_taken(taken: set[str]) -> None:
    names = ShortNames(taken)
    given_out = [names.fresh() for _ in range(200)]
    assert len(set(given_out)) == 200
    assert not taken & set(given_out)


def test_names_are_the_shortest_there_are() -> None:
    names = ShortNames([])
    given_out = [names.fresh() for _ in range(36 + 36**2 + 1)]
    assert [len(name) for name in given_out] == [1] * 36 + [2] * 36**2 + [3]


def test_equal_small_constants_share_one_and_different_types_do_not() -> None:
    writer = GraphWriter(ShortNames([]))
    one = writer.constant(np.array([1], dtype=np.int64))
    assert writer.constant(np.array([1], dtype=np.int64)) == one
    assert writer.constant(np.array(1, dtype=np.int64)) != one
    assert writer.constant(np.array([1], dtype=np.int32)) != one
    assert writer.constant(np.zeros(100, np.float32)) != writer.constant(np.zeros(100, np.float32))
    assert [tuple(tensor.dims) for tensor in writer.constants] == [(1,), (), (1,), (100,), (100,)]


@pytest.mark.parametrize(
    "array",
    [
        np.array(7, dtype=np.int64),
        np.array([-1, 3], dtype=np.int64),
        np.array([2**62, -(2**62)], dtype=np.int64),
        np.array([[1, 2], [3, 4]], dtype=np.int32),
        np.arange(5000, dtype=np.int32),
        np.zeros((0, 3), dtype=np.int64),
        np.array([1.5, -0.0], dtype=np.float32),
        np.arange(7, dtype=np.uint8),
    ],
)
def test_tensors_hold_their_values_in_no_more_bytes_than_raw(array: npt.NDArray[np.generic]) -> None:
    tensor = small_tensor(array, "name")
    back = numpy_helper.to_array(tensor)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert tensor.ByteSize() <= numpy_helper.from_array(array, "name").ByteSize()


def test_names_in_inner_graphs_are_found_too() -> None:
    def branch(name: str) -> GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        return helper.make_graph([helper.make_node("Neg", ["outer"], [name])], "branch", [], [output])

    choice = helper.make_node("If", ["yes"], ["result"], then_branch=branch("a"), else_branch=branch("b"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("outer", "result")]
    graph = helper.make_graph(
        [choice], "graph", [ends[0]], [ends[1]], [numpy_helper.from_array(np.array(True), "yes")]
    )
    assert names_in(graph) == {"outer", "yes", "result", "a", "b"}
