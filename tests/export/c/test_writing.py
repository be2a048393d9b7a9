"""Whole networks: compiled strictly, clean under sanitizers, equal to ONNX Runtime."""

import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from robustcompress.errors import ConfigError, ExportError
from robustcompress.export.c import compiling
from robustcompress.export.c.compiling import compile_program, computed_logits, find_compiler, run_program
from robustcompress.export.c.reading import read
from robustcompress.export.c.reference import reference_logits
from robustcompress.export.c.storing import round_layers
from robustcompress.export.c.writing import CFile, write_c
from robustcompress.export.session import OnnxSession
from robustcompress.export.values import ValueType

NOTHING = np.zeros(1, np.float32)
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler is installed")


def needs(compiler: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(compiler) is None, reason=f"{compiler} is not installed")


class Graph:
    """Writes ONNX graphs of thin networks; weights, channels or both are removed."""

    def __init__(self, shape: tuple[int, int, int], *, kind: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shape, self.kind = shape, kind

    def add(self, kind: str, *inputs: str | Tensor, **attributes: Any) -> str:
        names: list[str] = []
        for item in inputs:
            names.append(item if isinstance(item, str) else f"c{len(self.constants)}")
            if isinstance(item, Tensor):
                self.constants.append(numpy_helper.from_array(item.numpy(), names[-1]))
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def weight(self, *shape: int) -> Tensor:
        made = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        if self.kind in ("weights", "both"):
            made *= 2 * (torch.rand(shape) > 0.8)
        if self.kind in ("channels", "both") and len(made) > 7:
            made[:3] = 0
        return made + 0.0

    def conv(self, source: str, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> str:
        pads = [size // 2] * 4
        weight = self.weight(outputs, inputs, size, size)
        return self.add("Conv", source, weight, torch.randn(outputs), pads=pads, strides=[stride] * 2)

    def norm(self, source: str, width: int) -> str:
        parts = torch.randn(3, width).mul(0.3).add(torch.tensor([[1.0], [0.0], [0.0]]))
        return self.add("BatchNormalization", source, *parts, torch.rand(width) + 0.5)

    def model(self, logits: str, classes: int) -> ModelProto:
        ends = (("images", self.shape), (logits, (classes,)))
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes])]
            for name, sizes in ends
        )
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        made.ir_version = 8
        return made


def residual(kind: str) -> ModelProto:
    """Blocks of ResNet-18: the sum, then the ReLU; 1x1 shortcuts of stride 2."""
    graph = Graph((3, 20, 20), kind=kind)
    inner, width = graph.add("Relu", graph.conv("images", 3, 8)), 8
    for wider, stride in ((8, 1), (12, 2), (16, 2)):
        first = graph.add("Relu", graph.conv(inner, width, wider, stride=stride))
        shortcut = inner if stride == 1 else graph.conv(inner, width, wider, size=1, stride=stride)
        inner, width = graph.add("Relu", graph.add("Add", graph.conv(first, wider, wider), shortcut)), wider
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", inner))
    return graph.model(graph.add("Gemm", pooled, graph.weight(10, width), torch.randn(10), transB=1), 10)


def pre_activation(kind: str) -> ModelProto:
    """Blocks of wide residual networks: normalisation, ReLU, convolution; the images are normalised."""
    graph = Graph((3, 18, 14), kind=kind)
    scaled = graph.add("Div", graph.add("Sub", "images", torch.tensor(0.4)), torch.tensor([[[0.3]]]))
    inner, width = graph.conv(scaled, 3, 8), 8
    for wider, stride in ((12, 1), (16, 2)):
        active = graph.add("Relu", graph.norm(inner, width))
        first = graph.add("Relu", graph.norm(graph.conv(active, width, wider, stride=stride), wider))
        shortcut = graph.conv(active, width, wider, size=1, stride=stride)
        inner, width = graph.add("Add", graph.conv(first, wider, wider), shortcut), wider
    means = graph.add(
        "ReduceMean", graph.add("Relu", graph.norm(inner, width)), torch.tensor([2, 3]), keepdims=0
    )
    return graph.model(graph.add("Gemm", means, graph.weight(7, width), torch.randn(7), transB=1), 7)


def plain(kind: str) -> ModelProto:
    """Convolutions and pooling down to one pixel, as in VGG, and two layers."""
    graph = Graph((3, 16, 16), kind=kind)
    inner, width = "images", 3
    for wider in (8, 12, 16, 16):
        inner, width = graph.add("Relu", graph.norm(graph.conv(inner, width, wider), wider)), wider
        inner = graph.add("MaxPool", inner, kernel_shape=[2, 2], strides=[2, 2])
    hidden = graph.add("Gemm", graph.add("Flatten", inner), graph.weight(11, 16), torch.randn(11), transB=1)
    hidden = graph.add("Relu", hidden)
    return graph.model(graph.add("Gemm", hidden, graph.weight(6, 11), torch.randn(6), transB=1), 6)


def small(kind: str) -> ModelProto:
    """Convolutions of stride 2 on one channel, and two layers, as in small_cnn."""
    graph = Graph((1, 28, 28), kind=kind)
    inner = graph.add("Relu", graph.conv("images", 1, 8, stride=2))
    inner = graph.add("Flatten", graph.add("Relu", graph.conv(inner, 8, 9, stride=2)))
    hidden = graph.add("Relu", graph.add("Gemm", inner, graph.weight(20, 441), torch.randn(20), transB=1))
    return graph.model(graph.add("Gemm", hidden, graph.weight(10, 20), torch.randn(10), transB=1), 10)


NETWORKS = {"residual": residual, "pre-activation": pre_activation, "plain": plain, "small": small}


def made(name: str, *, kind: str = "weights", values: ValueType = "float32") -> tuple[CFile, Tensor, Tensor]:
    """Return the C file of a network, images and the logits that ONNX Runtime computes for them."""
    model = NETWORKS[name](kind)
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    images = torch.rand(3, *shape)
    rounded = round_layers(read(model), values)
    logits = OnnxSession(model.SerializeToString(), threads=1)(images)
    if values != "float32":
        logits = reference_logits(rounded, images)
    file = write_c(rounded, name="net", image=images[0].numpy(), logits=logits[0].numpy(), values=values)
    return file, images, logits


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("name", "kind", "compiler", "flags"),
    [
        pytest.param("residual", "weights", "gcc", ("-O2", "-march=native"), marks=needs("gcc")),
        pytest.param("residual", "both", "clang", ("-O2", "-march=native"), marks=needs("clang")),
        pytest.param("pre-activation", "weights", "gcc", ("-O2",), marks=needs("gcc")),
        pytest.param("plain", "channels", "gcc", ("-O1", "-Dnet_SCALAR"), marks=needs("gcc")),
        pytest.param("small", "dense", "clang", ("-O1", "-mavx2"), marks=needs("clang")),
    ],
)
def test_compiled_file_computes_what_onnx_runtime_does(
    name: str, kind: str, compiler: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    if "-mavx2" in flags and "avx2" not in compiling_for():
        pytest.skip("this machine has no AVX2")
    file, images, logits = made(name, kind=kind)
    program = compile_program(file, tmp_path, compiler=compiler, flags=(*STRICT, *flags))
    found = run_program(program, images, classes=logits.shape[1])
    assert difference(found, logits) < 1e-5
    said = subprocess.run([program, "3"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("ok: largest difference")
    assert "3 runs" in said


def compiling_for() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


@needs("clang")
@pytest.mark.parametrize("name", ["residual", "plain"])
def test_sanitizers_find_nothing(name: str, tmp_path: Path) -> None:
    file, images, logits = made(name)
    flags = ("-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-march=native")
    program = compile_program(file, tmp_path, compiler="clang", flags=flags)
    assert difference(run_program(program, images, classes=logits.shape[1]), logits) < 1e-5


@needs_compiler
@pytest.mark.parametrize("values", ["float16", "int8"])
def test_weights_in_fewer_bits_come_back_as_they_were_rounded(values: ValueType) -> None:
    file, images, logits = made("pre-activation", kind="both", values=values)
    assert (
        "uint16_t net_weights" in file.source if values == "float16" else "int8_t net_weights" in file.source
    )
    compiler = find_compiler()
    assert compiler is not None
    found = computed_logits(file, images, classes=logits.shape[1], compiler=compiler)
    assert difference(found, logits) < 1e-6


def test_the_file_is_the_same_every_time_and_stands_alone() -> None:
    network, image = read(plain("weights")), np.zeros((3, 16, 16), np.float32)
    files = [write_c(network, name="net", image=image, logits=np.zeros(6, np.float32)) for _ in range(2)]
    assert files[0].source == files[1].source
    text = files[0].source
    assert not any(word in text for word in ("malloc", "NAME_", "net_gather"))  # no step gathers
    assert set(re.findall(r"#include <(.*)>", text.partition("#ifdef net_MAIN")[0])) == {
        "float.h", "stddef.h", "stdint.h", "string.h", "immintrin.h", "emmintrin.h", "arm_neon.h"
    }  # fmt: skip
    outside = re.findall(r"^(?!static|#|extern|typedef)\w[^;\n]*\bnet_\w+", text, re.MULTILINE)
    assert [line.split()[-1] for line in outside] == ["net_run(const", "net_workspace_bytes"] or outside


@needs_compiler
def test_two_networks_live_in_one_program_and_two_calls_in_two_workspaces(tmp_path: Path) -> None:
    file, images, logits = made("pre-activation")
    other = made("plain")[0]
    compiler = find_compiler()
    assert compiler is not None
    for name, item in (("net", file), ("other", other)):
        for suffix, text in ((".c", item.source), (".h", item.header)):
            renamed = text.replace("net_", f"{name}_").replace("NET_", f"{name.upper()}_")
            (tmp_path / f"{name}{suffix}").write_text(renamed)
    (tmp_path / "main.c").write_text(
        """
#include <stdio.h>
#include "net.h"
#include "other.h"
static char first[net_WORKSPACE_BYTES + 1], second[net_WORKSPACE_BYTES];
int main(void) {
    static float image[net_INPUTS], one[net_OUTPUTS], two[net_OUTPUTS];
    if (other_workspace_bytes == 0 || fread(image, sizeof image, 1, stdin) != 1) return 1;
    net_run(image, one, first + 1);
    net_run(image, two, second);
    return fwrite(one, sizeof one, 1, stdout) + fwrite(two, sizeof two, 1, stdout) != 2;
}
"""
    )
    sources = [str(tmp_path / name) for name in ("net.c", "other.c", "main.c")]
    program = str(tmp_path / "both")
    subprocess.run([compiler, "-std=c99", "-O0", *sources, "-o", program], check=True)
    done = subprocess.run([program], input=images[0].numpy().tobytes(), capture_output=True, check=True)
    one, two = np.frombuffer(done.stdout, np.float32).reshape(2, -1)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, logits[0].numpy(), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_program_that_computes_something_else_says_so(tmp_path: Path) -> None:
    file, images, logits = made("plain")
    start = "net_example_logits[6] = {\n"
    source = file.source.replace(start, f"{start}9e9f,").replace("example_logits[6]", "example_logits[7]", 1)
    broken = replace(file, source=source)
    compiler = find_compiler()
    assert compiler is not None
    program = compile_program(broken, tmp_path, compiler=compiler, flags=("-std=c99", "-O0"))
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    with pytest.raises(ExportError, match="compiled C file failed: exit status 0, 72 bytes"):
        run_program(program, images, classes=logits.shape[1] + 1)
    damaged = replace(file, source=file.source + "\nint x = ;\n")
    with pytest.raises(ExportError, match=r"refuses the C file: .*error"):
        compile_program(damaged, tmp_path, compiler=compiler, flags=("-std=c99", "-O0"))


@pytest.mark.parametrize("name", ["", "1net", "net work", "int", "a" * 32, "NAME", "é"])
def test_names_that_are_no_identifiers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected the prefix of a C file"):
        write_c(read(plain("dense")), name=name, image=NOTHING, logits=NOTHING)


def test_lanes_are_those_of_vectors() -> None:
    with pytest.raises(ConfigError, match="lanes must be 4, 8 or 16"):
        write_c(read(plain("dense")), name="net", image=NOTHING, logits=NOTHING, lanes=5)


def test_a_compiler_that_is_missing_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert compiling.find_compiler() is None
