"""Arrays that share a constant, read back by ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from robustcompress.export.graph_writer import GraphWriter, ShortNames
from robustcompress.export.halves import Halves, write_halves


def read(writer: GraphWriter, names: dict[str, str], arrays: dict[str, Halves]) -> dict[str, object]:
    outputs = [
        helper.make_tensor_value_info(f"out {key}", TensorProto.FLOAT, array.shape)
        for key, array in arrays.items()
    ]
    ends = [helper.make_node("Identity", [names[key]], [f"out {key}"]) for key in arrays]
    graph = helper.make_graph([*writer.nodes, *ends], "graph", [], outputs, writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(arrays, session.run(None, {}), strict=True))


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("unit", [1.0, 2.0**-12])
def test_arrays_come_back_exactly_under_their_names(outputs: bool, unit: float) -> None:
    random = np.random.default_rng(0)
    shapes = {"a.bias": (40,), "b.bias": (3,), "c": (7, 1, 1), "d": (9, 1, 1), "alone": (2, 1)}
    arrays = {key: random.standard_normal(shape).astype(np.float16) for key, shape in shapes.items()}
    arrays["a.bias"][0] = 6e-8  # subnormal
    writer = GraphWriter(ShortNames(shapes))
    names = write_halves(arrays, writer, unit=unit, outputs=outputs)
    assert len(writer.constants) <= 3 + 2 + 1  # one for each last shape, their cuts, and the unit
    if outputs:
        assert names == {key: key for key in shapes}
    for key, found in read(writer, names, arrays).items():
        np.testing.assert_array_equal(found, arrays[key].astype(np.float32) * np.float32(unit))


def test_nothing_to_write_writes_nothing() -> None:
    writer = GraphWriter(ShortNames([]))
    assert write_halves({}, writer) == {}
    assert not writer.nodes
