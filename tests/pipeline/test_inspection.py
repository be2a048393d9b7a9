"""What inspect promises against what pruning and compaction then really leave."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.errors import ModelError, first_line
from robustcompress.graph.cost import count_macs
from robustcompress.pipeline.failing_layer import failing_layer
from robustcompress.pipeline.inspection import FrozenRow, Inspection, SiteRow, position_bytes
from robustcompress.pipeline.inspection_text import short
from robustcompress.pruning.patterns.channel import Channel
from tests.pipeline.conftest import Residual, compressor, recipe


class Mixed(nn.Module):
    """Grouped and depthwise convolutions, a concatenation, a flatten into a linear layer, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=4)
        self.side = nn.Conv2d(16, 8, 1, stride=2)
        self.norm = nn.GroupNorm(2, 24)
        self.down = nn.Conv2d(24, 16, 3, stride=2)
        self.hidden = nn.Linear(64, 32)
        self.classifier = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        joined = torch.cat([torch.relu(self.grouped(self.depthwise(stem))), torch.relu(self.side(stem))], 1)
        features = torch.relu(self.down(self.norm(joined))).flatten(1)
        logits: Tensor = self.classifier(torch.relu(self.hidden(features)))
        return logits


NETWORKS = {"residual": lambda: Residual(16), "mixed": Mixed}


def inspected(folder: Path, model: nn.Module | None = None, **changes: Any) -> Inspection:
    settings = recipe(**{"score": "magnitude", **changes})
    return compressor(folder, model=model or Residual(), recipe=settings).inspect()


def rows_of(found: Inspection) -> list[SiteRow | FrozenRow]:
    return [*found.sites, *found.frozen]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_costs_after_removal_are_those_of_the_really_compacted_network(
    name: str, sparsity: float, tmp_path: Path
) -> None:
    settings = recipe(
        pattern={"kind": "channel", "round_to": 2},
        sparsity=sparsity,
        score="magnitude",
        stages=["prune", "compact"],
    )
    begun = compressor(tmp_path / "run", model=NETWORKS[name](), recipe=settings)
    found = begun.inspect()
    dense = count_macs(NETWORKS[name](), torch.rand(1, 1, 9, 9))
    left = count_macs(begun.compress().network, torch.rand(1, 1, 9, 9))
    for row in rows_of(found):
        layers = row.layers if isinstance(row, SiteRow) else (row.name,)
        assert row.weights == sum(dense[layer].weights for layer in layers)
        assert row.weights_after == sum(left[layer].weights for layer in layers)
        assert row.macs == sum(dense[layer].macs for layer in layers)
        assert row.macs_after == row.effective_macs_after == sum(left[layer].macs for layer in layers)
        assert (row.bytes, row.bytes_after) == (4 * row.weights, 4 * row.weights_after)
    macs, macs_left = (sum(cost.macs for cost in costs.values()) for costs in (dense, left))
    assert (found.macs, found.macs_after) == (macs, macs_left)
    assert found.speed_up == pytest.approx(macs / macs_left)
    assert (sparsity > 0) == (macs_left < macs)


@pytest.mark.parametrize("pattern", ["unstructured", {"kind": "n_m"}, {"kind": "block", "height": 4}])
def test_masks_leave_what_is_promised_and_no_speed_up_is(pattern: Any, tmp_path: Path) -> None:
    model = Residual(16)
    settings = recipe(
        pattern=pattern,
        sparsity=0.5,
        score="magnitude",
        stages=["prune", "finetune"],
        finetune={"epochs": 0, "lr": 0.1},
    )
    begun = compressor(tmp_path / "run", model=model, recipe=settings)
    found = begun.inspect()
    left = count_macs(begun.compress().network, torch.rand(1, 1, 9, 9))
    for row in rows_of(found):
        assert row.weights_after == left[row.name].nonzero
        assert row.effective_macs_after == left[row.name].effective_macs
        assert row.macs_after == row.macs == left[row.name].macs
    assert found.effective_macs_after == sum(cost.effective_macs for cost in left.values())
    assert found.speed_up is None
    assert "No speed-up but a smaller file" in str(found)
    assert any("multiply by the zeros" in note for note in found.notes)
    assert any("leave dead go too" in note for note in found.notes) == (pattern == "unstructured")
    assert 4 * found.weights_after < found.bytes_after < found.bytes


@pytest.mark.parametrize("pattern", ["channel", "unstructured"])
def test_the_rows_add_up_to_the_whole(pattern: str, tmp_path: Path) -> None:
    found = inspected(tmp_path / "run", Mixed(), pattern=pattern, ignore=["side"])
    rows = rows_of(found)
    for field in ("weights", "weights_after", "macs", "macs_after", "effective_macs_after", "bytes"):
        assert sum(getattr(row, field) for row in rows) == getattr(found, field), field
    assert sum(row.bytes_after for row in rows) == pytest.approx(found.bytes_after, abs=len(rows))
    layers = [name for name, m in Mixed().named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    named = [layer for row in rows for layer in (row.layers if isinstance(row, SiteRow) else [row.name])]
    assert sorted(named) == sorted(layers)


def test_groups_tell_who_makes_normalises_and_takes_their_channels(tmp_path: Path) -> None:
    found = inspected(tmp_path / "run", pattern="channel", ignore=["first"])
    (group,) = found.sites
    assert group.layers == ("second", "shortcut")
    assert group.norms == ("second_norm", "shortcut_norm")
    assert group.consumers == ("classifier",)
    assert (group.units, group.removed) == (8, 4)
    reasons = {row.name: row.reason for row in found.frozen}
    assert reasons["first"] == "ignored by 'first'"
    assert "'first', which is left alone" in reasons["stem"]
    assert "outputs" in reasons["classifier"]


def test_the_json_holds_everything(tmp_path: Path) -> None:
    found = inspected(tmp_path / "run", pattern="channel")
    again = json.loads(json.dumps(found.as_dict()))
    assert again["sites"][2]["consumers"] == ["classifier"]
    assert again["frozen"][0]["reason"]
    assert {field.name for field in dataclasses.fields(found)} == again.keys()


class Long(nn.Module):
    """Twelve frozen layers of one reason, long names, and a million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_encoder_with_a_long_name = nn.ModuleList(nn.Linear(81, 81) for _ in range(12))
        self.another_rather_long_name_of_a_layer = nn.Linear(81, 2048)
        self.one_more_long_name_of_a_hidden_layer_in_the_head = nn.Linear(2048, 512)
        self.classifier = nn.Linear(512, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1)
        for layer in self.transformer_encoder_with_a_long_name:
            hidden = hidden + torch.fft.fft(layer(hidden)).real
        hidden = torch.relu(self.another_rather_long_name_of_a_layer(hidden))
        logits: Tensor = self.classifier(
            torch.relu(self.one_more_long_name_of_a_hidden_layer_in_the_head(hidden))
        )
        return logits


@pytest.mark.parametrize("pattern", ["channel", "unstructured"])
def test_the_text_fits_its_width_and_cuts_no_number(pattern: str, tmp_path: Path) -> None:
    found = inspected(tmp_path / "run", Long(), pattern=pattern)
    for groups in (False, True):
        for width in (60, 80, 110, 200):
            lines = found.text(width=width, groups=groups).splitlines()
            assert max(map(len, lines)) <= width
            text = "".join("".join(lines).split())
            for row in found.sites:
                assert f"{short(row.macs)}→{short(row.effective_macs_after)}" in text
            assert "…" not in text
    assert str(found) == found.text(width=110)


def test_frozen_layers_of_one_reason_share_a_line_unless_all_are_asked_for(tmp_path: Path) -> None:
    found = inspected(tmp_path / "run", Long(), pattern="channel")
    assert len(found.frozen) == 13
    brief, full = (found.text(width=200, groups=groups) for groups in (False, True))
    assert "and 9 more" in brief
    assert "encoder_with_a_long_name.11" not in "".join(brief.split())
    assert "encoder_with_a_long_name.11" in "".join(full.split())
    assert "taken in by" in full
    assert "taken in by" not in brief


def test_notes_tell_where_numbers_are_not_the_last_word(tmp_path: Path) -> None:
    class Functional(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.linear(super().forward(images), self.extra.weight)

    found = inspected(tmp_path / "a", Functional(), pattern="unstructured")
    assert any("1 layers compute through functions or not at all ('extra')" in note for note in found.notes)
    found = inspected(tmp_path / "b", pattern="channel", budget="learned", score="learned")
    assert any("'learned' learns: these are the counts that it begins with" in note for note in found.notes)
    for budget, score in (("global", "snip"), ("global", "learned"), ("uniform", "snip")):
        found = inspected(tmp_path / f"{budget}-{score}", pattern="channel", budget=budget, score=score)
        ranked_later = any("as magnitudes rank it: scores of 'snip'" in note for note in found.notes)
        assert ranked_later == ((budget, score) == ("global", "snip"))
    found = inspected(tmp_path / "c", pattern="channel", constraints={"macs": "50%"})
    assert found.macs_after <= found.macs / 2
    assert any("as the constraints ask for" in note for note in found.notes)


# --- Networks that cannot be looked through ---


class Single(nn.Module):
    """Runs in float32 only."""

    def forward(self, features: Tensor) -> Tensor:
        return features + features @ torch.eye(features.shape[-1])


class WithSingle(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), Single())

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.inner(images))


def test_torch_pruning_is_asked_on_demand(tmp_path: Path) -> None:
    settings = recipe(score="magnitude", pattern="channel", sparsity=0.5)
    made = compressor(tmp_path / "channels", model=Residual(16), recipe=settings)
    found = made.inspect()
    assert not any("torch-pruning" in note for note in found.notes)
    groups = len(found.sites)
    notes = made.inspect(second_opinion=True).notes
    assert notes == (*found.notes, f"torch-pruning couples the same channels in {groups} of {groups} groups.")
    weights = compressor(tmp_path / "weights", model=Residual(16), recipe=recipe(score="magnitude"))
    assert (
        "torch-pruning knows channels only; it was not asked." in weights.inspect(second_opinion=True).notes
    )


def test_a_layer_that_only_runs_in_float32_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"happened in 'inner\.1' \(Single\)\. Channels are looked for.*unstru"
    ):
        inspected(tmp_path / "run", WithSingle(), pattern="channel")
    assert inspected(tmp_path / "other", WithSingle(), pattern="unstructured").sites


def test_whatever_goes_wrong_inside_becomes_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = compressor(tmp_path / "run", recipe=recipe(pattern="channel"))

    def fail(self: object, *arguments: object) -> None:
        raise KeyError("conv9")

    monkeypatch.setattr(Channel, "plan", fail)
    with pytest.raises(
        ModelError, match=r"cannot be looked through for the pattern 'channel': KeyError: 'con"
    ):
        begun.inspect()


def test_a_network_without_removable_channels_says_why_of_each_layer(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(81, 3))
    with pytest.raises(ModelError, match=r"1: its channels are the network's outputs.*Use the pattern"):
        inspected(tmp_path / "run", network, pattern="channel")


def test_the_innermost_layer_is_found_through_causes_and_copies() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("no\nmore")

    network = nn.Sequential(nn.Sequential(nn.Identity(), Broken()))
    with pytest.raises(ValueError, match="no") as raised:
        network(torch.zeros(1))
    wrapped = ModelError("wrapped")
    wrapped.__cause__ = raised.value
    assert failing_layer(wrapped) == failing_layer(raised.value) == "'0.1' (Broken)"
    assert first_line(raised.value) == "ValueError: no."
    assert failing_layer(ValueError()) is None
    assert failing_layer(None) is None
    assert first_line(ValueError()) == "ValueError: no message."


# --- Numbers ---


@given(st.integers(1, 400), st.data())
def test_positions_cost_what_counting_masks_says(units: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, units))
    bits = 8 * position_bytes(units, kept)
    counted = math.log2(math.comb(units, kept))
    assert counted - 1e-6 <= bits <= counted + math.log2(units + 1) + 1e-6  # Cover and Thomas, theorem 11.1.3


@given(st.integers(0, 10**17))
def test_short_numbers_are_right_to_half_a_percent(count: int) -> None:
    text = short(count)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.get(text[-1], 1)
    assert float(text.rstrip("kMGTP")) * scale == pytest.approx(count, rel=0.005)
    assert len(text) <= 5


def test_short_numbers_look_like_this() -> None:
    numbers = [0, 999, 1000, 9994, 9996, 99_960, 999_400, 999_600, 11_172_810]
    expected = ["0", "999", "1.00k", "9.99k", "10.0k", "100k", "999k", "1.00M", "11.2M"]
    assert [short(number) for number in numbers] == expected
