import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustcompress.errors import StorageError
from robustcompress.report.model import Report, as_png, magnitude_histogram


@given(
    st.lists(st.tuples(st.floats(-3, 3, width=32), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_a_histogram_counts_as_numpy_does(units: list[tuple[float, bool]], bins: int) -> None:
    values = torch.tensor([value for value, _ in units])
    mask = torch.tensor([kept for _, kept in units])
    found = magnitude_histogram(values, mask, bins=bins)
    magnitudes = values.abs().double().numpy()
    for chosen, counts in ((mask.numpy(), found.kept), (~mask.numpy(), found.removed)):
        expected, _ = np.histogram(magnitudes[chosen], bins=np.array(found.edges))
        assert counts == tuple(expected.tolist())
    assert sum(found.kept) + sum(found.removed) == len(units)
    assert len(found.edges) == bins + 1


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_are_pngs_of_the_same_pixels(channels: int) -> None:
    pixels = torch.randint(256, (channels, 5, 7), generator=torch.Generator().manual_seed(0))
    picture = Image.open(io.BytesIO(base64.b64decode(as_png(pixels / 255))))
    expected = pixels.permute(1, 2, 0).numpy() if channels == 3 else pixels[0].numpy()
    assert np.array_equal(np.asarray(picture), expected)


def test_a_missing_report_asks_whether_the_run_was_evaluated(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Was the run evaluated"):
        Report.read(tmp_path / "report.json")


@pytest.mark.parametrize("text", ["{}", "no json", '{"schema_version": 1, "run": 3}'])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=r"report\.json: no report of this version"):
        Report.read(path)
