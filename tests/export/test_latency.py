import time

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from robustcompress.errors import ConfigError
from robustcompress.export.latency import measure_latencies, one_image
from robustcompress.export.session import OnnxSession


def _session(shape: list[int | str]) -> OnnxSession:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return OnnxSession(model.SerializeToString(), threads=1)


class _Slow(OnnxSession):
    """Takes its time, and notes when it was called."""

    def __init__(self, milliseconds: float, calls: list[float]) -> None:
        self.milliseconds = milliseconds
        self.calls = calls

    def __call__(self, images: Tensor, /) -> Tensor:
        self.calls.append(self.milliseconds)
        time.sleep(self.milliseconds / 1000)
        return images


def test_sessions_are_timed_in_turn() -> None:
    calls: list[float] = []
    image = torch.zeros(1, 3)
    fast, slow = measure_latencies([_Slow(1, calls), _Slow(8, calls)], [image, image], seconds=0)
    assert calls == [1, 8] * (len(calls) // 2)
    assert fast.calls == slow.calls == 10
    assert 1 <= fast.low_ms <= fast.median_ms <= fast.high_ms
    assert slow.median_ms >= 8
    assert fast.median_ms < slow.median_ms


def test_more_seconds_take_more_calls() -> None:
    calls: list[float] = []
    (found,) = measure_latencies([_Slow(1, calls)], [torch.zeros(1, 3)], seconds=0.1)
    assert found.calls > 10


def test_a_file_is_timed() -> None:
    session = _session(["batch", 3])
    image = one_image(session)
    assert image is not None
    (found,) = measure_latencies([session], [image], seconds=0)
    assert 0 < found.median_ms < 1000


def test_one_image_has_the_size_that_the_file_takes() -> None:
    sized = one_image(_session(["batch", 4]))
    fixed = one_image(_session([2, 4]))
    assert sized is not None
    assert fixed is not None
    assert (sized.shape, fixed.shape) == ((1, 4), (2, 4))
    assert one_image(_session(["batch", "any"])) is None


def test_images_for_each_session_are_needed() -> None:
    with pytest.raises(ConfigError, match="expected images for 1 sessions; got 0"):
        measure_latencies([_session(["batch", 3])], [])


def test_nothing_is_timed_at_once() -> None:
    assert measure_latencies([], []) == []
