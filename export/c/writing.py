"""Write the C file and its header."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustcompress.errors import ConfigError
from robustcompress.export.c import tables
from robustcompress.export.c.kernels import rows_kernels, taps_kernels
from robustcompress.export.c.network import Floats, Network
from robustcompress.export.c.planning import IMAGE, LOGITS, LayerCost, Program, plan
from robustcompress.export.values import ValueType

_HERE = Path(__file__).parent
_ALIGNMENT = 64
_WORDS = frozenset({
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return", "short",
    "signed", "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile",
    "while",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class CFile:
    """A network in C.

    Attributes:
        name: Prefix of everything that the file defines.
        source: Text of the ``.c`` file; it needs nothing but a compiler's own headers and ``memcpy``.
        header: Text of the ``.h`` file, for those who call it.
        workspace_bytes: That a caller hands over.
        layers: What each layer with weights costs.
        labels: Of the steps, in order.
    """

    name: str
    source: str
    header: str
    workspace_bytes: int
    layers: tuple[LayerCost, ...]
    labels: tuple[str, ...]


def checked_name(name: str) -> str:
    """Return a prefix as it is.

    Raises:
        ConfigError: If it is no C identifier, or reserved.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", name) or name in _WORDS or name.startswith("NAME"):
        raise ConfigError(
            f"expected the prefix of a C file as at most 31 letters, digits and underscores, a letter first; "
            f"got {name!r}. Take the network's name, such as resnet18."
        )
    return name


def write_c(
    network: Network,
    *,
    name: str,
    image: Floats,
    logits: Floats,
    lanes: int = 8,
    values: ValueType = "float32",
    sparse: bool | None = None,
    comment: str = "",
) -> CFile:
    """Return the C file of a network; the same text for the same arguments.

    Args:
        network: As read and fused, weights rounded to ``values``.
        name: Prefix of all names.
        image: float32, one example, for the file's check of itself.
        logits: float32 ``[classes]``, of the example.
        lanes: Floats of the vectors that it is to be best for: 4, 8 or 16. It is correct with all.
        values: How weights are stored.
        sparse: Whether to sum over kept weights only; ``None`` chooses for each layer.
        comment: For the top of the file, one line or more.

    Raises:
        ConfigError: If ``name`` or ``lanes`` is not possible.
    """
    checked_name(name)
    if lanes not in (4, 8, 16):
        raise ConfigError(f"lanes must be 4, 8 or 16 floats a vector; got {lanes}. 8 suits AVX2.")
    program = plan(network, lanes=lanes, values=values, sparse=sparse)
    sizes = int(np.prod(network.shapes[network.input])), network.shapes[network.output][0]
    length = 4 * program.workspace + _ALIGNMENT
    header = _header(sizes, length, network)
    body = "\n".join([*program.tables, _run(program)])
    check = _part("self_check").replace("EXAMPLE\n", _example(image, logits))
    parts = [
        _comment(comment),
        _TOP,
        _declarations(sizes, length),
        _part("vectors"),
        _functions(program, body),
        body,
        check,
    ]
    text = "\n".join(parts).replace("NAME_", f"{name}_")
    return CFile(
        name,
        text,
        header.replace("NAME_", f"{name}_").replace(f"{name}_H", f"{name.upper()}_H"),
        length,
        program.layers,
        tuple(step.label for step in program.steps),
    )


_TOP = """\
#if defined(NAME_MAIN) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 199309L
#endif
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
"""


def _comment(text: str) -> str:
    lines = [line.replace("*/", "* /") for line in text.splitlines()]
    return "/* " + "\n   ".join(lines) + " */"


def _declarations(sizes: tuple[int, int], length: int) -> str:
    return (
        f"#define NAME_INPUTS {sizes[0]}\n#define NAME_OUTPUTS {sizes[1]}\n"
        f"#define NAME_WORKSPACE_BYTES {length}\n\n"
        "extern const size_t NAME_workspace_bytes;\n"
        "void NAME_run(const float *image, float *logits, void *workspace);\n\n"
        "const size_t NAME_workspace_bytes = NAME_WORKSPACE_BYTES;\n"
    )


def _header(sizes: tuple[int, int], length: int, network: Network) -> str:
    shape = " x ".join(map(str, network.shapes[network.input]))
    return f"""\
#ifndef NAME_H
#define NAME_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define NAME_INPUTS {sizes[0]} /* {shape}: channels, rows, columns */
#define NAME_OUTPUTS {sizes[1]}
#define NAME_WORKSPACE_BYTES {length}

extern const size_t NAME_workspace_bytes;

/* Compute the logits of one image. The workspace is any memory of NAME_workspace_bytes that no other call
   uses at the same time; nothing is kept in it between calls. */
void NAME_run(const float *image, float *logits, void *workspace);

#ifdef __cplusplus
}}
#endif
#endif
"""


def _run(program: Program) -> str:
    """Return the function that runs all steps."""
    lines = [
        f"void NAME_run(const float *{IMAGE}, float *{LOGITS}, void *workspace)",
        "{",
        f"    const uintptr_t start = (uintptr_t)workspace + {_ALIGNMENT - 1};",
        f"    float *w = (float *)(start & ~(uintptr_t){_ALIGNMENT - 1});",
        "    NAME_BEGIN",
    ]
    places = {key: f"w + {start}" for key, start in program.starts.items()}
    for number, step in enumerate(program.steps):
        lines += [f"    {step.call.format(**places)}", f"    NAME_DONE({number})"]
    return "\n".join([*lines, "}"]) + "\n"


def _example(image: Floats, logits: Floats) -> str:
    return tables.floats("NAME_example_image", image) + tables.floats("NAME_example_logits", logits)


def _part(name: str) -> str:
    return (_HERE / f"{name}.c").read_text(encoding="utf-8")


def _functions(program: Program, body: str) -> str:
    """Return the functions and types that ``body`` needs, and what those need, in their order."""
    everything = (
        _part("convolutions")
        .replace("SPARSE_KERNELS", taps_kernels(program.sparse_positions))
        .replace("DENSE_KERNELS", rows_kernels(program.dense_positions))
        + "\n"
        + _part("layers")
    )
    chunks = everything.strip("\n").split("\n\n")
    names = [set(re.findall(r"\bNAME_\w+", chunk)) for chunk in chunks]
    defined = [_defined(chunk) for chunk in chunks]
    wanted = set(re.findall(r"\bNAME_\w+", body))
    taken: set[int] = set()
    while True:
        more = {
            index for index, own in enumerate(defined) if index not in taken and (not own or own & wanted)
        }
        if not more:
            break
        taken |= more
        for index in more:
            wanted |= names[index]
    return "\n\n".join(chunks[index] for index in sorted(taken)) + "\n"


def _defined(chunk: str) -> set[str]:
    """Return the names that a piece of C defines."""
    functions = re.findall(r"^static [^;={]*?\b(NAME_\w+)\(", chunk, re.MULTILINE)
    types = re.findall(r"^\} (NAME_\w+);", chunk, re.MULTILINE)
    pointers = re.findall(r"\(\*(NAME_\w+)\)", chunk)
    return {*functions, *types, *pointers}
