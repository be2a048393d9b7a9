"""Each kernel of the C file against sums written out in NumPy, on shapes that fit nothing."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from robustcompress.export.c.compiling import compile_program, find_compiler, run_program
from robustcompress.export.c.network import (
    Concatenation,
    Convolution,
    Flatten,
    Floats,
    Network,
    Operation,
    Shape,
)
from robustcompress.export.c.writing import write_c

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler is installed")


def by_hand(layer: Convolution, image: Floats, residual: Floats | None) -> Floats:
    """Sum over windows in float64, one output at a time."""
    top, left, bottom, right = layer.pads
    padded = np.pad(image.astype(np.float64), ((0, 0), (top, bottom), (left, right)))
    outputs, inputs, height, width = layer.weight.shape
    reach = [(size - 1) * step + 1 for size, step in zip((height, width), layer.dilation, strict=True)]
    rows, columns = (
        (size - far) // step + 1
        for size, far, step in zip(padded.shape[1:], reach, layer.stride, strict=True)
    )
    made = np.zeros((outputs, rows, columns))
    for o in range(outputs):
        start = o // (outputs // layer.groups) * inputs
        for y in range(rows):
            for x in range(columns):
                window = padded[
                    start : start + inputs,
                    y * layer.stride[0] : y * layer.stride[0] + reach[0] : layer.dilation[0],
                    x * layer.stride[1] : x * layer.stride[1] + reach[1] : layer.dilation[1],
                ]
                made[o, y, x] = (window * layer.weight[o]).sum() + layer.bias[o]
    if residual is not None:
        made += residual
    return np.clip(made, layer.low, layer.high).astype(np.float32)


def layer(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    *,
    sparsity: float,
    inputs: tuple[str, ...] = ("image",),
    output: str = "made",
    **settings: object,
) -> Convolution:
    weight = rng.normal(size=shape).astype(np.float32)
    weight *= rng.random(shape) >= sparsity
    bias = rng.normal(size=shape[0]).astype(np.float32)
    return Convolution(inputs=inputs, output=output, weight=weight, bias=bias, label="layer", **settings)  # type: ignore[arg-type]


def computed(
    layers: Sequence[Operation], image: Floats, sizes: dict[str, Shape], folder: Path, **settings: object
) -> Floats:
    """Compile the layers and return what the last one makes."""
    last = layers[-1].output
    operations = list(layers)
    sizes = {"image": image.shape, **sizes}
    if len(sizes[last]) == 3:
        operations.append(Flatten(inputs=(last,), output="logits"))
        sizes["logits"] = (int(np.prod(sizes[last])),)
    output = operations[-1].output
    network = Network(operations=tuple(operations), input="image", output=output, shapes=sizes)
    flags = settings.pop("flags", ("-std=c99", "-O0", "-march=native"))
    logits = np.zeros(sizes[output], np.float32)
    file = write_c(network, name="net", image=image, logits=logits, **settings)  # type: ignore[arg-type]
    compiler = find_compiler()
    assert compiler is not None
    assert isinstance(flags, tuple)
    program = compile_program(file, folder, compiler=compiler, flags=flags)
    found = run_program(program, torch.tensor(image[None]), classes=logits.size)
    return found.numpy().reshape(sizes[last])


Kinds: TypeAlias = dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]]
"""By name: shape of the weight, and settings of the convolution."""

SAME = {"pads": (1, 1, 1, 1)}
CASES: dict[str, tuple[Shape, Kinds]] = {
    "narrow": ((4, 9, 7), {
        "3x3": ((5, 4, 3, 3), SAME),
        "1x1": ((7, 4, 1, 1), {}),
        "columns": ((3, 4, 1, 3), {"pads": (0, 1, 0, 1)}),
        "stride 2": ((5, 4, 3, 3), {**SAME, "stride": (2, 2)}),
        "1x1 of stride 2": ((3, 4, 1, 1), {"stride": (2, 2)}),
        "groups": ((6, 2, 3, 3), {**SAME, "groups": 2}),
        "depthwise of stride 2": ((4, 1, 3, 3), {**SAME, "stride": (2, 2), "groups": 4}),
    }),
    "4x4": ((6, 4, 4), {"3x3": ((6, 6, 3, 3), SAME), "stride 2": ((9, 6, 3, 3), {**SAME, "stride": (2, 2)})}),
    "padded": ((2, 11, 13), {
        "5x5": ((3, 2, 5, 5), {"pads": (2, 2, 2, 2)}),
        "3x3 without padding": ((4, 2, 3, 3), {}),
        "dilated": ((3, 2, 3, 3), {"pads": (2, 2, 2, 2), "dilation": (2, 2)}),
        "uneven": ((3, 2, 4, 5), {"pads": (2, 0, 1, 3), "stride": (3, 2)}),
    }),
    "wide": ((2, 5, 107), {
        "3x3": ((3, 2, 3, 3), SAME),
        "stride 2": ((2, 2, 3, 3), {**SAME, "stride": (2, 2)}),
    }),
    "one pixel": ((17, 1, 1), {"1x1": ((9, 17, 1, 1), {}), "3x3": ((2, 17, 3, 3), SAME)}),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("sparse", [True, False])
def test_convolutions_are_the_sums_over_windows(case: str, sparse: bool, tmp_path: Path) -> None:
    size, kinds = CASES[case]
    rng = np.random.default_rng(len(case))
    image = rng.normal(size=size).astype(np.float32)
    operations: list[Operation] = []
    sizes: dict[str, Shape] = {}
    parts: list[Floats] = []
    for name, (shape, settings) in kinds.items():
        made = layer(rng, shape, sparsity=0.5, low=-1.5, high=4.0, output=name, **settings)
        parts.append(by_hand(made, image, None))
        sizes[name], sizes[f"flat {name}"] = parts[-1].shape, (parts[-1].size,)
        operations += [made, Flatten(inputs=(name,), output=f"flat {name}")]
    joined = tuple(f"flat {name}" for name in kinds)
    operations.append(Concatenation(inputs=joined, output="logits"))
    sizes["logits"] = (sum(part.size for part in parts),)
    flags = ("-std=c99", "-O0", *(("-march=native",) if sparse else ("-Dnet_SCALAR",)))
    found = computed(operations, image, sizes, tmp_path, sparse=sparse, flags=flags)
    ends = np.cumsum([part.size for part in parts])[:-1]
    for name, part, expected in zip(kinds, np.split(found, ends), parts, strict=True):
        np.testing.assert_allclose(part, expected.reshape(-1), rtol=1e-5, atol=1e-5, err_msg=name)


@needs_compiler
@pytest.mark.parametrize("width", [8, 19])
def test_a_residual_is_added_before_the_clamp(width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    image = rng.normal(size=(3, 8, width)).astype(np.float32)
    first = layer(rng, (4, 3, 3, 3), sparsity=0.3, pads=(1, 1, 1, 1), low=0.0, output="first")
    second = layer(rng, (4, 4, 3, 3), sparsity=0.7, pads=(1, 1, 1, 1), low=0.0, inputs=("first", "first"))
    inner = by_hand(first, image, None)
    expected = by_hand(second, inner, inner)
    sizes: dict[str, Shape] = {"first": inner.shape, "made": expected.shape}
    found = computed([first, second], image, sizes, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("lanes", [4, 16])
def test_input_channels_in_blocks_give_the_same_sums(lanes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(lanes)
    image = rng.normal(size=(150, 8, 8)).astype(np.float32)
    made = layer(rng, (3, 150, 3, 3), sparsity=0.1, pads=(1, 1, 1, 1))
    twice = layer(rng, (2, 3, 3, 3), sparsity=0.0, pads=(1, 1, 1, 1), inputs=("made",), output="last")
    inner = by_hand(made, image, None)
    expected = by_hand(twice, inner, None)
    sizes: dict[str, Shape] = {"made": inner.shape, "last": expected.shape}
    found = computed([made, twice], image, sizes, tmp_path, lanes=lanes, sparse=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_clang_takes_the_file_with_all_warnings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 6)).astype(np.float32)
    made = layer(rng, (3, 2, 3, 3), sparsity=0.5, pads=(1, 1, 1, 1))
    network = Network(
        operations=(made, Flatten(inputs=("made",), output="logits")),
        input="image",
        output="logits",
        shapes={"image": (2, 6, 6), "made": (3, 6, 6), "logits": (108,)},
    )
    file = write_c(network, name="net", image=image, logits=by_hand(made, image, None).reshape(-1))
    strict = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O0", "-mavx2", "-mfma")
    compile_program(file, tmp_path, compiler="clang", flags=strict)
