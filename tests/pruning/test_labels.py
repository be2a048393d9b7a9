import pytest
import torch

from robustcompress.pruning.labels import NOBODY, PADDING, Labels, Slot, Ties, UnevenError


def test_numbers_are_the_same_at_every_call_and_different_for_every_layer_and_axis() -> None:
    ties = Ties()
    first = ties.numbers("a", 0, 3)
    assert torch.equal(first, ties.numbers("a", 0, 3))
    assert not set(first.tolist()) & set(ties.numbers("a", 1, 3).tolist())
    assert not set(first.tolist()) & set(ties.numbers("b", 0, 3).tolist())
    assert (ties.layers(0), ties.layers(1)) == ({"a", "b"}, {"a"})


def test_ties_are_transitive_and_a_reason_holds_for_all_that_are_tied() -> None:
    ties = Ties()
    a, b, c = (ties.numbers(name, 0, 2) for name in "abc")
    ties.unite(a, b, "")
    ties.freeze(c[:1], "because")
    ties.freeze(c[:1], "another")
    ties.unite(b, c, "")
    units = sorted(ties.units())
    assert [slots for slots, _ in units] == [[Slot(name, 0, index) for name in "abc"] for index in (0, 1)]
    assert [reason for _, reason in units] == ["because", None]


def test_a_channel_that_meets_nobody_must_stay() -> None:
    ties = Ties()
    numbers = ties.numbers("a", 0, 2)
    ties.unite(numbers, torch.tensor([NOBODY, int(numbers[1])]), "in a sum")
    assert [reason for _, reason in sorted(ties.units())] == [
        "in a sum, where they meet values that stay",
        None,
    ]


def test_a_view_as_groups_ties_the_same_channels_of_every_group() -> None:
    ties = Ties()
    labels = Labels(1, ties.numbers("a", 0, 6), zero=True)
    gathered = ties.gather(labels.spread((2, 6, 4)).view(2, 2, 3, 4), "here")
    assert gathered is not None
    assert gathered[0] == 2
    assert [[slot.position for slot in slots] for slots, _ in sorted(ties.units())] == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]


def test_padding_at_borders_goes_with_any_channel_and_among_channels_with_none() -> None:
    ties = Ties()
    spread = Labels(1, ties.numbers("a", 0, 3), zero=True).spread((2, 3, 4))
    gathered = ties.gather(torch.nn.functional.pad(spread, (1, 1, 1, 0), value=PADDING), "here")
    assert gathered is not None
    axis, numbers = gathered
    assert (axis, numbers.tolist()) == (1, [NOBODY, 0, 1, 2])
    assert all(reason is None for _, reason in ties.units())


def test_a_tensor_without_channels_has_no_axis_and_a_single_channel_none_to_cut() -> None:
    ties = Ties()
    assert ties.gather(torch.full((2, 3), float(NOBODY), dtype=torch.float64), "here") is None
    spread = Labels(1, ties.numbers("a", 0, 3), zero=True).spread((2, 3))
    with pytest.raises(UnevenError, match="a single one of its channels is picked out"):
        ties.gather(spread[:, 1], "here")
