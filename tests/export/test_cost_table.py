import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from robustcompress.errors import ConfigError, StorageError
from robustcompress.export import cost_table
from robustcompress.export.cost_table import CostTable, LayerShape, layer_graph, measure_layer, total_ms

CONV = LayerShape("conv", 8, 16, (3, 3), (2, 2), (1, 1), (1, 1), (9, 9))
DEPTHWISE = LayerShape("conv", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (9, 9), groups=8)
ALONG = LayerShape("conv", 4, 6, (3,), (1,), (0,), (2,), (20,))
LINEAR = LayerShape("linear", 12, 5)
LARGE = LayerShape("conv", 128, 128, (3, 3), (1, 1), (1, 1), (1, 1), (32, 32))


@pytest.mark.parametrize(
    "shape", [CONV, DEPTHWISE, ALONG, LINEAR], ids=lambda shape: f"{shape.kind}{shape.size}"
)
def test_the_network_of_one_layer_computes_what_torch_does(shape: LayerShape) -> None:
    model = layer_graph(shape)
    weight, bias = (torch.from_numpy(np.frombuffer(t.raw_data, np.float32).reshape(t.dims).copy())
                    for t in model.graph.initializer)  # fmt: skip
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sizes = (1, shape.inputs, *shape.size) if shape.kind == "conv" else (shape.rows, shape.inputs)
    images = torch.rand(sizes, generator=torch.Generator().manual_seed(0))
    if shape.kind == "linear":
        expected = F.linear(images, weight, bias)
    else:
        convolve = F.conv1d if len(shape.size) == 1 else F.conv2d
        expected = convolve(images, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)
    (found,) = session.run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(np.asarray(found)), expected.relu(), atol=1e-4)


def test_a_thousand_times_the_work_takes_longer() -> None:
    assert measure_layer(LARGE, 1) > 3 * measure_layer(LINEAR, 1) > 0


def test_a_table_measures_once_and_comes_back_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = CostTable.of_this_device(threads=1)
    first = total_ms(table, [CONV, LINEAR])
    table.write(tmp_path / "table.json")
    monkeypatch.setattr(cost_table, "measure_layer", lambda *_: pytest.fail("measured again"))
    again = CostTable.read(tmp_path / "table.json")
    assert again.is_of_this_device
    assert (again.device, again.threads, again.milliseconds) == (table.device, 1, table.milliseconds)
    assert total_ms(again, [CONV, LINEAR]) == first


def test_another_devices_table_is_scaled_from_the_nearest_shape_of_the_same_family() -> None:
    def conv(inputs: int, outputs: int) -> LayerShape:
        return LayerShape("conv", inputs, outputs, (3, 3), (1, 1), (1, 1), (1, 1), (8, 8))

    table = CostTable("a phone", 1, {conv(64, 64): 4.0, conv(16, 16): 0.5})
    assert not table.is_of_this_device
    assert table.latency_ms(conv(64, 64)) == 4.0
    assert table.latency_ms(conv(48, 64)) == 3.0
    assert table.latency_ms(conv(16, 8)) == 0.25


def test_another_devices_table_that_lacks_a_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cost table of 'a phone' has no layer like .*remeasured\(\)"):
        CostTable("a phone", 1, {CONV: 1.0}).latency_ms(LINEAR)


def test_a_table_can_be_measured_anew_on_this_device() -> None:
    table = CostTable("a phone", 1, {CONV: 1e9, LINEAR: 1e9}).remeasured()
    assert table.is_of_this_device
    assert set(table.milliseconds) == {CONV, LINEAR}
    assert all(0 < found < 1000 for found in table.milliseconds.values())


ROW = {"shape": {"kind": "linear", "inputs": 1, "outputs": 1}, "ms": 1.0}


@pytest.mark.parametrize(
    "rows", [[{**ROW, "ms": -1}], [{"ms": 1}], [{**ROW, "colour": 1}], [{**ROW, "shape": {}}]]
)
def test_rows_that_are_no_timings_are_refused(tmp_path: Path, rows: list[object]) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"device": "x", "threads": 1, "layers": rows}))
    with pytest.raises(StorageError, match="expected a cost table as a run saves it"):
        CostTable.read(path)
    path.write_text(json.dumps({"device": "x", "threads": 1, "layers": [ROW]}))
    assert CostTable.read(path).milliseconds == {LayerShape("linear", 1, 1): 1.0}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "x", "threads": 0, "layers": []}'])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="expected a cost table as a run saves it"):
        CostTable.read(path)
    with pytest.raises(StorageError, match="expected a cost table"):
        CostTable.read(tmp_path / "none.json")
