"""The stage that turns masks into smaller or sparser networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from robustcompress import Compressor, load
from robustcompress.errors import CompactionError, ModelError
from robustcompress.pipeline import compacting
from robustcompress.pruning.compaction import Compacted
from tests.pipeline.conftest import Residual, bars, compressor, recipe

STAGE = {"epochs": 1, "lr": 0.1, "batch_size": 30}


def chosen(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "objective": "natural",
        "score": "magnitude",
        "budget": "global",
        "sparsity": 0.97,
        "pretrain": STAGE,
        "finetune": STAGE,
        "stages": ("pretrain", "prune", "finetune", "compact", "export"),
    }
    return recipe(**{**values, **changes})


def removed_channels(run: Compressor) -> int:
    counts = run._run.latest.metrics["removed_channels"]
    assert isinstance(counts, dict)
    return sum(counts.values())


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def test_channels_that_single_weights_left_dead_are_gone_and_the_file_agrees(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", recipe=chosen())
    result = run.compress()
    assert removed_channels(run) > 0
    smaller = shapes(result.network)
    groups = ("stem", "first", "second")
    assert sum(8 - smaller[f"{group}.weight"][0] for group in groups) == removed_channels(run)
    pixels, _ = next(iter(bars(30, 1).batches(30)))
    expected = result.network(pixels).detach()
    assert torch.equal(load(result.artifact, model=Residual())(pixels), expected)
    session = onnxruntime.InferenceSession(result.files[0].path)
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_where_nothing_is_dead_the_weights_are_merely_sparse(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", recipe=chosen(sparsity=0.1, budget="uniform"))
    assert shapes(run.compress().network) == shapes(Residual())
    assert run._run.latest.metrics["removed_channels"] == {}


@pytest.mark.parametrize("pattern", [{"kind": "n_m", "n": 2, "m": 4}, "block"])
def test_layouts_that_a_device_wants_stay(
    tmp_path: Path, pattern: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **others: Any) -> Compacted:
        raise AssertionError("no channel may be looked for")

    monkeypatch.setattr(compacting, "remove_channels", refuse)
    changes: dict[str, Any] = {"pattern": pattern}
    if pattern != "block":
        changes["sparsity"] = 0.5
    assert shapes(compressor(tmp_path / "run", recipe=chosen(**changes)).compress().network) == shapes(
        Residual()
    )


def test_ignored_layers_keep_their_shapes(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", recipe=chosen(ignore=("classifier",), sparsity=0.98))
    assert run.compress().network.get_parameter("classifier.weight").shape == (3, 8)
    assert removed_channels(run) > 0


class Single(Residual):
    """Works in float32 and nowhere else, so that nothing can be proven of it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float())


def test_a_network_that_cannot_be_followed_stays_sparse_with_a_warning(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", model=Single(), recipe=chosen())
    result = run.compress()
    assert shapes(result.network) == shapes(Residual())
    weights = [
        module.weight for module in result.network.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert sum(int((weight != 0).sum()) for weight in weights) <= 0.04 * sum(w.numel() for w in weights)
    (warning,) = [text for text in run._run.context.warnings if "left dead" in text]
    assert "the weights stay sparse: Single must run on torch.float64 images" in warning


def broken(error: Exception) -> Callable[..., Compacted]:
    def fail(*arguments: Any, **others: Any) -> Compacted:
        raise error

    return fail


def test_a_proof_that_fails_leaves_single_weights_sparse_and_stops_a_run_of_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "remove_channels", broken(CompactionError("they differ")))
    sparse = compressor(tmp_path / "sparse", recipe=chosen())
    assert shapes(sparse.compress().network) == shapes(Residual())
    assert any("stay sparse: they differ" in text for text in sparse._run.context.warnings)
    channels = compressor(tmp_path / "channels", recipe=chosen(pattern="channel", sparsity=0.5))
    with pytest.raises(CompactionError, match="they differ"):
        channels.compress()
    monkeypatch.setattr(compacting, "remove_channels", broken(ModelError("cannot be traced")))
    with pytest.raises(ModelError, match="cannot be traced"):
        compressor(tmp_path / "other", recipe=chosen(pattern="channel", sparsity=0.5)).compress()


class Grouped(nn.Module):
    """A grouped convolution of which shapes do not say whether groups or a part of each are left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.last = nn.Conv2d(8, 4, 1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.grouped(self.stem(images).relu()).relu()
        logits: Tensor = self.classifier(self.last(features).relu().mean((2, 3)))
        return logits


def test_shapes_from_which_the_network_cannot_be_rebuilt_are_not_saved(tmp_path: Path) -> None:
    model = Grouped()
    with torch.no_grad():  # of each group two of four filters are dead: 4 of 8, or one of two groups
        model.grouped.weight[[0, 1, 4, 5]] *= 1e-9
        assert model.grouped.bias is not None
        model.grouped.bias[[0, 1, 4, 5]] = -1.0
    frozen = {**STAGE, "lr": 1e-12}
    run = compressor(
        tmp_path / "run", model=model, recipe=chosen(sparsity=0.5, pretrain=frozen, finetune=frozen)
    )
    assert shapes(run.compress().network) == shapes(Grouped())
    assert any("cannot be rebuilt from shapes" in text for text in run._run.context.warnings)
