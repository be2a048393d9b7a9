import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from robustcompress.errors import ExportError, ModelError
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.network import read_network
from robustcompress.export.quantised import as_half, dequantize, quantize
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.bounds.interval import propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat

Array = npt.NDArray[Any]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        first = torch.relu(self.stem(images))
        second = self.pool(torch.relu(self.body(first) + first))
        logits: Tensor = self.head(second.flatten(1))
        return logits


@pytest.fixture(scope="module")
def float_network() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a residual network that has learnt which quarter of the image is bright, images and labels."""
    torch.manual_seed(0)
    labels = torch.arange(240) % 4
    images = 0.5 * torch.rand(240, 1, 8, 8)
    for index, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[index, 0, top : top + 4, left : left + 4] += 0.25
    network = Residual()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval().requires_grad_(False), images, labels


def quantised_file(network: nn.Module, images: Tensor, folder: Path, **settings: Any) -> Path:
    """Quantise as ONNX Runtime does; weights of 7 bits, which no processor's kernels saturate on."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self, name: str) -> None:
            self.rows: Iterator[dict[str, Array]] = iter([{name: row[None].numpy()} for row in images[:32]])

        def get_next(self) -> Any:
            return next(self.rows, None)

    plain, found = folder / "float.onnx", folder / "int8.onnx"
    Onnx(style="dense").write(network, plain, images=images[:4], metadata={})
    name = onnx.load(plain).graph.input[0].name
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(plain),
            str(found),
            Reader(name),
            quant_format=QuantFormat.QDQ,
            reduce_range=True,
            **settings,
        )
    finally:
        logging.disable(logging.NOTSET)
    return found


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantised_files_twin_gives_the_sessions_logits(
    per_channel: bool, float_network: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    network, images, _ = float_network
    path = quantised_file(network, images, tmp_path, per_channel=per_channel)
    twin = read_twin(path, OnnxSession(path), images)
    assert twin.rounded
    assert twin.agreeing >= 0.99
    # Without fused kernels the runtime does what the file says, and so does the twin.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected: Any = literal.run(None, {literal.get_inputs()[0].name: images.numpy()})[0]
    found = twin.network(images).detach().numpy()
    step = np.unique(np.diff(np.unique(expected))).max()  # logits are whole numbers of steps
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.97
    assert np.abs(found - expected).max() <= 1.01 * step
    assert not np.allclose(found, network(images).numpy(), atol=1e-4)


def test_attacks_on_the_twin_find_more_than_images_made_on_the_float_network(
    float_network: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    network, images, labels = float_network
    path = quantised_file(network, images, tmp_path)
    session = OnnxSession(path)
    twin = read_twin(path, session, images)
    found = evaluate(
        network,
        [(images, labels)],
        threat=Threat(eps=0.12),
        attacks=[Pgd(steps=20)],
        seed=0,
        device="cpu",
        files={"int8": Target(session, twin.network)},
    )
    counts = {(m.attack, m.access): m.correct for m in found.measurements if m.subject == "int8"}
    assert counts["worst case", "white-box"] <= counts["PGD-20x1", "transfer"]
    assert counts["PGD-20x1", "white-box"] < counts["clean", "none"] - 20


def test_bounds_refuse_a_network_that_rounds_by_name(
    float_network: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    network, images, _ = float_network
    rounding = read_network(quantised_file(network, images, tmp_path))
    with pytest.raises(ModelError, match="cannot pass operation 'quantize'"):
        propagate(trace_network(rounding), {}, images[:2], images[:2])


def test_a_whole_number_type_may_be_named_instead_of_given_by_a_zero_point() -> None:
    data = _model(
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
        opset=21,
        w=WEIGHT,
        s=np.array(0.1, dtype=np.float32),
    )
    images = torch.linspace(-20, 20, 80).reshape(20, 4)  # uint8 would make all below zero alike
    torch.testing.assert_close(read_network(data)(images), OnnxSession(data)(images), atol=1e-4, rtol=1e-5)


@given(
    scale=st.floats(1e-3, 10),
    zero=st.integers(-128, 127),
    values=st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=20),
)
def test_rounding_is_that_of_the_reference(scale: float, zero: int, values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float32)
    parts = np.array(scale, dtype=np.float32), np.array(zero, dtype=np.int8)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    results = ReferenceEvaluator(node).run(None, dict(zip("xsz", (given_values, *parts), strict=True)))
    assert isinstance(results, list)
    expected = np.asarray(results[0])
    found = quantize(
        torch.from_numpy(given_values), torch.tensor(parts[0]), torch.tensor(float(zero)), -128, 127
    )
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))


def test_gradients_pass_straight_through_where_nothing_saturates() -> None:
    values = torch.tensor([-3.0, -0.26, 0.1, 0.26, 3.0], requires_grad=True)
    scale, zero = torch.tensor(0.5), torch.tensor(1.0)
    whole = quantize(values, scale, zero, -1, 3)
    assert whole.tolist() == [-1, 0, 1, 2, 3]
    (gradient,) = torch.autograd.grad(dequantize(whole, scale, zero).sum(), values)
    assert gradient.tolist() == [0, 1, 1, 1, 0]


def test_half_precision_rounds_and_lets_gradients_pass() -> None:
    values = torch.tensor([0.1, 1 / 3, 1000.3], requires_grad=True)
    rounded = as_half(values)
    assert torch.equal(rounded.detach(), values.detach().half().float())
    assert torch.autograd.grad(rounded.sum(), values)[0].tolist() == [1, 1, 1]


def _model(*nodes: onnx.NodeProto, opset: int = 17, **constants: Array) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def test_a_file_in_half_precision_has_a_twin() -> None:
    data = _model(
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        w=WEIGHT.astype(np.float16),
    )
    images = torch.rand(50, 4)
    twin = read_twin(data, OnnxSession(data), images)
    assert twin.rounded
    assert twin.largest_difference < 2e-3


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [
                helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                helper.make_node("MatMul", ["d", "w"], ["y"]),
            ],
            {"w": WEIGHT},
            r"'dynamic' \(DynamicQuantizeLinear\)",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                helper.make_node(
                    "QLinearMatMul", ["q", "s", "z", "v", "s", "z", "s", "z"], ["p"], name="integers"
                ),
                helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
            ],
            {
                "v": np.ones((4, 3), dtype=np.int8),
                "s": np.array(0.1, dtype=np.float32),
                "z": np.array(0, dtype=np.int8),
            },
            r"'integers' \(QLinearMatMul\): this operator is not understood",
        ),
        (
            [
                helper.make_node("Cast", ["x"], ["d"], name="whole", to=TensorProto.DOUBLE),
                helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", ["f", "w"], ["y"]),
            ],
            {"w": WEIGHT},
            r"'whole' \(Cast\): it makes another type",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="wide", axis=1),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="odd"),
                helper.make_node("MatMul", ["d", "w"], ["y"]),
            ],
            {"w": WEIGHT, "s": np.array(0.1, dtype=np.float32), "z": np.array(3, dtype=np.int32)},
            r"'odd' \(DequantizeLinear\): its whole numbers are of type int32",
        ),
    ],
)
def test_what_is_not_understood_is_named(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        read_network(_model(*nodes, opset=17, **constants))


def test_blockwise_quantisation_is_refused() -> None:
    data = _model(
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="blocks", axis=1, block_size=2),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=1, block_size=2),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
        w=WEIGHT,
        s=np.full((1, 2), 0.1, dtype=np.float32),
    )
    with pytest.raises(ExportError, match=r"'blocks' \(QuantizeLinear\): it quantises block by block"):
        read_network(data)


def test_a_runtime_that_computes_something_else_has_no_twin(
    float_network: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    network, images, _ = float_network
    path = quantised_file(network, images, tmp_path)
    session = OnnxSession(path)

    class Saturating(OnnxSession):
        def __call__(self, images: Tensor, /) -> Tensor:
            return 0.9 * session(images)

    with pytest.raises(ExportError, match=r"the runtime does not compute what the file says.*reduce_range"):
        read_twin(path, Saturating(path), images)
