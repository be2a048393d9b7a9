import onnx
import pytest
from pydantic import ValidationError

from robustcompress.errors import ConfigError
from robustcompress.export.formats import Format
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.targets import Limits, limits_of


def test_a_release_stands_for_its_patches_and_the_newest_row_for_all_that_follow() -> None:
    assert limits_of("onnxruntime>=1.17") == limits_of(" onnxruntime >= 1.17.3 ") == Limits(20, 9)
    assert limits_of("onnxruntime>=1.99") == limits_of("onnxruntime>=2.0") == limits_of("onnxruntime>=1.23")


@pytest.mark.parametrize("minor", range(14, 24))
def test_opset_and_ir_version_of_every_row_came_out_in_one_release_of_onnx_or_later_ones(minor: int) -> None:
    limits = limits_of(f"onnxruntime>=1.{minor}")
    releases = {row[2]: row[1] for row in onnx.helper.VERSION_TABLE}
    assert releases[limits.opset] == limits.ir_version


def test_a_target_lowers_the_file_version_and_leaves_the_opset_that_every_runtime_of_it_knows() -> None:
    chosen = Onnx(target="onnxruntime>=1.17")
    assert (chosen.opset, chosen.ir_version) == (18, 9)
    assert (Onnx().opset, Onnx().ir_version) == (18, 10)
    newest = Onnx(target="onnxruntime>=1.23")
    assert (newest.opset, newest.ir_version) == (18, 10)


def test_settings_with_a_target_are_read_back_as_they_were_written() -> None:
    chosen = Onnx(target="onnxruntime>=1.15", name="old")
    assert Format.find(chosen.model_dump(mode="json")) == chosen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": "onnxruntime>=1.17", "opset": 21},
            "opset=21 is newer than what onnxruntime>=1.17 reads, 20",
        ),
        ({"target": "onnxruntime>=1.14", "ir_version": 9}, "ir_version=9 is newer than what .* reads, 8"),
        ({"target": "onnxruntime>=1.13"}, "1.13 does not know opset 18.*Name 1.14 or newer"),
        ({"target": "tensorrt"}, "expected a target such as 'onnxruntime>=1.17'; got 'tensorrt'"),
    ],
)
def test_what_the_target_cannot_read_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Onnx.model_validate(settings)


def test_a_target_is_written_as_name_and_release() -> None:
    with pytest.raises(ConfigError, match="expected a target such as"):
        limits_of("onnxruntime==1.17")
    with pytest.raises(ConfigError, match="does not know opset 18"):
        limits_of("onnxruntime>=0.9")
