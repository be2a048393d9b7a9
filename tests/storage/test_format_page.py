"""The page that describes the format is held against what is written: its own reader must agree with ours."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcompress.storage.artifact import Artifact, load_artifact, save_artifact
from robustcompress.storage.codecs import smallest
from robustcompress.storage.codecs.gaps import Gaps
from robustcompress.storage.dtypes import DTYPES, to_array
from robustcompress.storage.manifest import Manifest

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read_artifact() -> Callable[[Path], Any]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # the page's own reader is what is tested
    reader: Callable[[Path], Any] = names["read_artifact"]
    return reader


def test_the_reader_on_the_page_reads_what_we_write(
    tmp_path: Path, read_artifact: Callable[[Path], Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype.name}//{kept}": (
            torch.randint(1, 90, shape, generator=generator) * (torch.rand(shape, generator=generator) < kept)
        ).to(dtype.torch)
        for dtype in DTYPES
        for kept, shape in ((1.0, (3, 4)), (0.4, (50, 8, 3)), (0.02, (40, 90)), (0.0, ()), (0.5, (0, 2)))
    }
    tensors["far"] = torch.zeros(300_000).index_fill_(0, torch.tensor([5, 299_999]), 2.0)
    save_artifact(
        Artifact(stage="x", tensors=tensors, seed=3, extra_tensors={"m": torch.ones(9) > 0}), tmp_path
    )
    manifest, files = read_artifact(tmp_path)
    assert manifest["seed"] == 3
    assert files["masks.safetensors"]["m"].tolist() == [True] * 9
    found = files["model.safetensors"]
    assert set(found) == set(tensors)
    for name, tensor in load_artifact(tmp_path).tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].tobytes() == to_array(name, tensor)[1].tobytes()


def test_the_page_names_every_field_and_dtype() -> None:
    for name in Manifest.model_fields:
        assert f"| `{name}` |" in PAGE
    for dtype in DTYPES:
        assert f"`{dtype.name}`" in PAGE


def test_the_examples_on_the_page_are_true() -> None:
    parts = Gaps().encode(np.array([0, 0, 7, 8, 0, 0, 0, 9, 0, 0, 0, 0], np.int8))
    assert (parts["gaps"].tolist(), parts["values"].tolist()) == ([2, 0, 3], [7, 8, 9])
    late = np.array([0] * 600 + [1], np.int8)
    assert Gaps().encode(late)["gaps"].tolist() == [600]
    for gaps in (np.array([255, 255, 90], np.uint8), np.array([600], np.uint16)):
        found = Gaps().decode({"gaps": gaps, "values": late[-1:]}, 601, late.dtype)
        assert found.tolist() == late.tolist()


@pytest.mark.parametrize(
    ("zeros", "kind"),
    [(0.02, "dense"), (0.04, "bitmask"), (0.61, "bitmask"), (0.65, "rice"), (0.999, "rice")],
)
def test_codecs_change_where_the_page_says(zeros: float, kind: str) -> None:
    random = np.random.default_rng(0)
    values = np.where(random.random(200_000) < zeros, 0, 1).astype(np.float32)
    assert smallest(values)[0].kind == kind
