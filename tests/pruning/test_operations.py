from typing import Any

import pytest
import torch

from robustcompress.pruning.operations import Call, tensors

ATEN: Any = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "other", "keeps"),
    [
        (ATEN.relu.default, (), True),
        (ATEN.hardswish.default, (), True),
        (ATEN.gelu.default, (), True),
        (ATEN.mul.Tensor, (3.0,), True),
        (ATEN.mul.Tensor, (torch.ones(2),), True),
        (ATEN.div.Tensor, (torch.ones(2),), True),
        (ATEN.clamp.default, (-1.0, 6.0), True),
        (ATEN.pow.Tensor_Scalar, (2.0,), True),
        (ATEN.clone.default, (), True),
        (ATEN.sigmoid.default, (), False),
        (ATEN.exp.default, (), False),
        (ATEN.add.Tensor, (1.0,), False),
        (ATEN.add.Tensor, (torch.ones(2),), False),
        (ATEN.clamp.default, (0.5, 6.0), False),
        (ATEN.pow.Tensor_Scalar, (0.0,), False),
        (ATEN.rsub.Scalar, (1.0,), False),
        (ATEN.maximum.default, (torch.ones(2),), False),
    ],
)
def test_whether_zeros_stay_zeros_is_found_by_trying(
    function: Any, other: tuple[Any, ...], keeps: bool
) -> None:
    features = torch.rand(2)
    call = Call.of(function, (features, *other), {})
    assert call.is_pointwise()
    assert call.keeps_zero(lambda tensor: tensor is features) == keeps


def test_a_sum_of_zeros_is_zero_and_a_quotient_of_zeros_is_not() -> None:
    both = (torch.rand(2), torch.rand(2))
    assert Call.of(ATEN.add.Tensor, both, {}).keeps_zero(lambda tensor: True)
    assert not Call.of(ATEN.div.Tensor, both, {}).keeps_zero(lambda tensor: True)


def test_names_of_operations_in_place_are_those_of_the_others() -> None:
    assert Call.of(ATEN.relu_.default, (torch.rand(2),), {}).name == "relu"
    assert Call.of(ATEN._unsafe_view.default, (torch.rand(2), [2]), {}).title == "UnsafeView"


def test_a_call_is_repeated_with_other_tensors_and_arguments() -> None:
    call = Call.of(ATEN.cat.default, ([torch.zeros(2), torch.ones(1)],), {"dim": 0})
    assert call.run(lambda tensor: tensor + 1).tolist() == [1, 1, 2]
    padded = Call.of(ATEN.constant_pad_nd.default, (torch.zeros(1), [1, 0]), {})
    assert padded.run(lambda tensor: tensor, value=7.0).tolist() == [7, 0]


def test_axes_of_means_and_softmaxes_and_sides_of_pools() -> None:
    images = torch.rand(2, 3, 4, 4)
    mean = Call.of(ATEN.mean.dim, (images, [-1, 2]), {})
    assert (mean.reduced(4), mean.keeps_axes()) == ((3, 2), False)
    softmax = Call.of(ATEN._softmax.default, (images, 1, False), {})
    assert (softmax.reduced(4), softmax.keeps_axes()) == ((1,), True)
    assert Call.of(ATEN.sum.default, (images,), {}).reduced(4) == (0, 1, 2, 3)
    pool = Call.of(ATEN.max_pool2d_with_indices.default, (images, [2, 2]), {})
    assert (pool.sides(), pool.reduced(4)) == (2, None)
    assert mean.sides() is None


def test_tensors_are_found_in_lists_and_mappings() -> None:
    first, second = torch.rand(1), torch.rand(1)
    assert [id(tensor) for tensor in tensors({"a": [first, 3], "b": (second, None)})] == [
        id(first),
        id(second),
    ]


def test_what_is_tried_stays_as_it_is() -> None:
    features = torch.full((3,), -1.0)
    Call.of(ATEN.relu_.default, (features,), {}).keeps_zero(lambda tensor: tensor is features)
    assert features.tolist() == [-1, -1, -1]
