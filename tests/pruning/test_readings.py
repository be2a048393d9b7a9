import torch

from robustcompress.pruning.readings import Reading, agreeing


def test_an_input_is_constant_if_no_image_counts_and_it_has_one_value_beside_zeros() -> None:
    inputs = torch.zeros(2, 6, 3, dtype=torch.float64)
    depends = torch.zeros(2, 6, 3)
    inputs[:, 0] = 1.5
    inputs[:, 1, :2] = -2.0
    inputs[:, 2] = torch.tensor([1.0, 2.0, 1.0])
    inputs[1, 3] = 4.0
    inputs[:, 4] = 1.5
    depends[1, 4, 2] = 1.0
    found = Reading.of(inputs, depends, padded=True, biased=False)
    assert found.constant.tolist() == [True, True, False, True, False, True]
    assert found.values[[0, 1, 3, 5]].tolist() == [1.5, -2.0, 4.0, 0.0]
    assert found.filled.tolist() == [True, False, True, False, True, False]
    assert found.inside[3].tolist() == [False] * 3 + [True] * 3
    assert (found.padded, found.biased) == (True, False)


def test_rounding_makes_no_other_value_and_infinity_is_none() -> None:
    inputs = torch.full((1, 3, 4), 0.1, dtype=torch.float64)
    inputs[0, 0, 1] += 1e-16
    inputs[0, 1, 1] += 1e-9
    inputs[0, 2] = torch.inf
    found = Reading.of(inputs, torch.zeros(1, 3, 4), padded=False, biased=True)
    assert found.constant.tolist() == [True, False, False]


def constants(*values: float, filled: bool = True) -> Reading:
    inside = torch.ones(len(values), 4, dtype=torch.bool)
    inside[:, 0] = filled
    return Reading(
        torch.ones(len(values), dtype=torch.bool), torch.tensor(values).double(), inside, False, True
    )


def test_calls_agree_where_they_see_the_same_constant() -> None:
    assert agreeing([constants(1.0, 2.0)]).tolist() == [True, True]
    assert agreeing([constants(1.0, 2.0), constants(1.0 + 1e-15, 2.1)]).tolist() == [True, False]
    assert agreeing([constants(0.0, 2.0), constants(1e-30, 2.0)]).tolist() == [False, True]
