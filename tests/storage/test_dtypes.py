import numpy as np
import pytest
import torch

from robustcompress.errors import StorageError
from robustcompress.storage.dtypes import DTYPES, StoredDtype, to_array, to_tensor


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype.name))
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3), (2, 3, 4, 5)])
def test_a_tensor_comes_back_as_it_was(dtype: StoredDtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype.torch)
    found, values = to_array("t", tensor)
    assert found is dtype
    assert values.dtype == dtype.numpy
    assert values.shape == (tensor.numel(),)
    back = to_tensor(values.copy(), found, shape)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_names_and_codes_are_those_of_torch_and_of_the_format() -> None:
    for dtype in DTYPES:
        assert str(dtype.torch) == f"torch.{dtype.name}"
        assert dtype.numpy.itemsize == torch.empty(0, dtype=dtype.torch).element_size()


def test_bfloat16_travels_as_its_bits() -> None:
    assert to_array("t", torch.tensor([1.0, -2.0], dtype=torch.bfloat16))[1].tolist() == [0x3F80, 0xC000]


@pytest.mark.parametrize("memory", ["channels_last", "transposed", "strided", "expanded"])
def test_values_come_in_logical_order_whatever_the_memory_format(memory: str) -> None:
    plain = torch.arange(120.0).reshape(2, 3, 4, 5)
    tensor = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.permute(3, 1, 0, 2),
        "strided": plain[:, ::2, 1::2],
        "expanded": plain[:1].expand(3, 3, 4, 5),
    }[memory]
    assert to_array("t", tensor)[1].tolist() == [float(x) for x in np.array(tensor.tolist()).reshape(-1)]


def test_a_parameter_that_wants_gradients_is_stored_like_any_tensor() -> None:
    assert to_array("t", torch.nn.Parameter(torch.ones(2)))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
    ],
    ids=["complex", "float8", "meta", "sparse"],
)
def test_a_tensor_that_no_file_can_hold_is_refused_by_name(tensor: torch.Tensor) -> None:
    with pytest.raises(StorageError, match=r"tensor 'conv.weight': expected a dense tensor with data"):
        to_array("conv.weight", tensor)
