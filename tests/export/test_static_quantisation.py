import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from robustcompress.errors import ExportError
from robustcompress.export.compact_quantised import compact_quantised
from robustcompress.export.densify import dense_model
from robustcompress.export.session import OnnxSession
from robustcompress.export.static_quantisation import WeightBits, checked_calibration, quantised
from robustcompress.export.twin import read_twin

WIDTH = 40
CALIBRATION = 0.5 * torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def sparse(*shape: int, seed: int, sparsity: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=shape).astype(np.float32)
    return values * (generator.random(shape) >= sparsity).astype(np.float32)


def two_convolutions(sparsity: float = 0.95) -> ModelProto:
    """A float model: convolution, ReLU, convolution with a residual sum, mean, classifier."""
    weights = {
        "first": sparse(WIDTH, 1, 3, 3, seed=1, sparsity=0.3),
        "second": sparse(WIDTH, WIDTH, 3, 3, seed=2, sparsity=sparsity),
        "head": sparse(5, WIDTH, seed=3, sparsity=0.0),
        "first.bias": sparse(WIDTH, seed=4, sparsity=0.0),
        "second.bias": sparse(WIDTH, seed=5, sparsity=0.0),
        "head.bias": sparse(5, seed=6, sparsity=0.0),
    }
    weights["second"][7] = 0  # an output channel that a mask removed
    nodes = [
        helper.make_node("Conv", ["images", "first", "first.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second", "second.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "head", "head.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def constants(model: ModelProto) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def logits_of(model: ModelProto, images: Tensor = CALIBRATION) -> Tensor:
    return OnnxSession(model.SerializeToString())(images)


def operators_that_run(model: ModelProto, folder: object) -> list[str]:
    """Return the operators that are left after ONNX Runtime has folded and fused what it can."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = f"{folder}/optimised.onnx"
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.fixture(scope="module")
def whole() -> ModelProto:
    return quantised(two_convolutions(), CALIBRATION, weight_bits=7)


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_the_nearest_of_as_many_steps_as_the_largest_of_their_row_allows(
    bits: WeightBits,
) -> None:
    plain = constants(two_convolutions())
    stored = constants(quantised(two_convolutions(), CALIBRATION, weight_bits=bits))
    top = {7: 64, 8: 127}[bits]
    for name in ("first", "second", "head"):
        weight = plain[name].reshape(len(plain[name]), -1).astype(np.float64)
        codes = stored[f"{name}_quantized"].reshape(weight.shape).astype(np.int64)
        largest = np.abs(weight).max(axis=1, keepdims=True)
        expected = np.rint(weight * top / np.where(largest == 0, 1, largest))
        # Float32 arithmetic may put a value in the middle of two steps on either side.
        assert np.abs(codes - expected).max() <= 1
        assert (codes != expected).mean() < 0.01


def test_a_removed_weight_stays_exactly_zero(whole: ModelProto) -> None:
    plain, stored = constants(two_convolutions())["second"], constants(whole)
    assert not stored["second_quantized"][plain == 0].any()
    assert not stored["second_zero_point"].any()


def test_ranges_are_the_largest_that_calibration_images_show(whole: ModelProto) -> None:
    scale = float(constants(whole)["images_scale"])
    assert scale == pytest.approx(float(CALIBRATION.max()) / 255, rel=1e-6)
    wider = quantised(two_convolutions(), torch.cat([CALIBRATION, CALIBRATION * 2]), weight_bits=7)
    assert float(constants(wider)["images_scale"]) == pytest.approx(2 * scale, rel=1e-6)


def test_logits_are_not_rounded_to_bytes(whole: ModelProto) -> None:
    images = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(1)) / 2
    assert len(logits_of(whole, images)[:, 0].unique()) > 256
    assert whole.graph.node[-1].op_type == "Gemm"


def test_logits_stay_near_those_of_the_float_model(whole: ModelProto) -> None:
    expected = logits_of(two_convolutions())
    moved = float((logits_of(whole) - expected).abs().max() / expected.abs().max())
    assert 0 < moved < 0.05


def test_equal_input_gives_equal_bytes_and_leaves_no_handler_with_the_root_logger(whole: ModelProto) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    again = quantised(two_convolutions(), CALIBRATION, weight_bits=7)
    assert again.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)


def test_a_model_that_cannot_run_is_refused() -> None:
    model = two_convolutions()
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(ExportError, match="ONNX Runtime cannot quantise the network"):
        quantised(model, CALIBRATION, weight_bits=7)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.rand(0, 1, 6, 6), "at least one; got"),
        (torch.rand(4, 3, 6, 6), r"must be \[n, 1, 6, 6\]"),
        (torch.full((4, 1, 6, 6), float("nan")), "NaN or infinite"),
    ],
)
def test_calibration_images_that_the_network_cannot_take_are_refused(
    calibration: Tensor, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        checked_calibration(calibration, CALIBRATION)


def test_a_float_output_that_nothing_rounds_is_left_alone() -> None:
    model = two_convolutions()
    model.graph.node[-1].output[0] = "h"
    model.graph.node.append(helper.make_node("Softmax", ["h"], ["logits"], axis=1))
    found = quantised(model, CALIBRATION, weight_bits=7)
    assert found.graph.node[-1].op_type == "Softmax"
    assert logits_of(found).sum(1).allclose(torch.ones(16))


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.95])
def test_a_compact_model_gives_the_same_bits_by_the_same_operators(sparsity: float, tmp_path: object) -> None:
    whole = quantised(two_convolutions(sparsity), CALIBRATION, weight_bits=7)
    compacted = compact_quantised(whole, group="net")
    onnx.checker.check_model(compacted, full_check=True)
    images = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(logits_of(compacted, images), logits_of(whole, images))
    assert operators_that_run(compacted, tmp_path) == operators_that_run(whole, tmp_path)


@pytest.mark.parametrize("group", ["net", "layer"])
def test_a_compact_model_holds_every_constant_of_the_dense_one(whole: ModelProto, group: str) -> None:
    compacted = compact_quantised(whole, group="net" if group == "net" else "layer")
    found = constants(dense_model(compacted))
    weight = constants(whole)["second_quantized"]
    assert np.array_equal(found["second_quantized"], weight)
    assert found["second_quantized"].dtype == np.int8
    kept = sum(array.nbytes for array in constants(compacted).values())
    assert kept < 0.5 * sum(array.nbytes for array in constants(whole).values())


def test_a_dense_weight_stays_an_initializer() -> None:
    whole = quantised(two_convolutions(0.0), CALIBRATION, weight_bits=7)
    compacted = compact_quantised(whole, group="net")
    assert np.array_equal(constants(compacted)["second_quantized"], constants(whole)["second_quantized"])
    assert not [node for node in compacted.graph.node if node.op_type == "Cast"]
    assert len(compacted.SerializeToString()) <= len(whole.SerializeToString())


def test_the_twin_of_a_compact_file_computes_what_the_runtime_does(whole: ModelProto) -> None:
    data = compact_quantised(whole, group="net").SerializeToString()
    twin = read_twin(data, OnnxSession(data), CALIBRATION)
    assert twin.rounded
    assert twin.agreeing == 1
    images = CALIBRATION.clone().requires_grad_(True)
    twin.network(images).square().sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) > 0


def test_compacting_changes_nothing_in_the_model_it_was_given(whole: ModelProto) -> None:
    before = whole.SerializeToString(deterministic=True)
    first, second = (compact_quantised(whole, group="net") for _ in range(2))
    assert whole.SerializeToString(deterministic=True) == before
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
