"""The innermost loops, written out for each number of sums that registers hold."""

from collections.abc import Iterable

_MACHINES = ((16, 24), (8, 12), (4, 24), (4, 12), (1, 12))
"""Floats a vector and sums that registers hold, of everything that the file may be compiled for."""

_UNROLLED = {1: 8, 2: 5, 3: 4, 4: 3, 5: 2, 6: 2}
"""Taps at a time: as many independent sums as hide the time that a multiplication takes."""

_TAPS_ARGUMENTS = """\
(const float *in, const int32_t *offsets, const float *weights, int32_t count,
    float bias, int goes_on, const NAME_end *end, const float *residual, float *out, size_t at)"""
_ROWS_ARGUMENTS = """\
(const float *in, const int32_t *offsets, const float *weights, int32_t count,
    const float *bias, int32_t outputs, const NAME_end *end, const float *residual,
    size_t residual_channel, float *out, size_t channel, size_t at)"""


def taps_kernels(positions: Iterable[int]) -> str:
    """Return C functions that sum taps, with ``NAME_`` for the prefix.

    Args:
        positions: Of the planes of all layers: only tiles that they are cut into are written.
    """
    sizes = _sizes(positions, 1)
    return _family("taps", _TAPS_ARGUMENTS, sizes, {size: _taps(size) for size in sizes})


def rows_kernels(positions: Iterable[int]) -> str:
    """Return C functions that sum dense rows of four outputs, with ``NAME_`` for the prefix.

    Args:
        positions: Of the planes of all layers: only tiles that they are cut into are written.
    """
    sizes = _sizes(positions, 4)
    return _family("rows", _ROWS_ARGUMENTS, sizes, {size: _rows(size) for size in sizes})


def _sizes(positions: Iterable[int], outputs: int) -> dict[int, list[tuple[int, int]]]:
    """Return the vectors that tiles have, and the machines on which they have so many."""
    found: dict[int, set[tuple[int, int]]] = {}
    for count in positions:
        for machine in _MACHINES:
            vectors, most = -(-count // machine[0]), machine[1] // outputs
            tiles = -(-vectors // most)
            for size in {vectors // tiles, -(-vectors // tiles)}:
                found.setdefault(size, set()).add(machine)
    return {size: sorted(found[size]) for size in sorted(found)}


def _family(
    name: str, arguments: str, sizes: dict[int, list[tuple[int, int]]], bodies: dict[int, str]
) -> str:
    """Return the functions of all sizes, and one that finds them."""
    parts = [f"typedef void (*NAME_{name}_function){arguments};"]
    choice = [f"static NAME_{name}_function NAME_{name}(int32_t vectors)", "{", "    switch (vectors) {"]
    for size, machines in sizes.items():
        these = " || ".join(f"NAME_IS({lanes}, {tile})" for lanes, tile in machines)
        parts += [f"#if {these}", f"static void NAME_{name}{size}{arguments}", bodies[size], "#endif"]
        choice += [f"#if {these}", f"    case {size}:", f"        return NAME_{name}{size};", "#endif"]
    return "\n".join([*parts, *choice, "    default:", "        return NULL;", "    }", "}"])


def _taps(size: int) -> str:
    """Return the function that sums taps for ``size`` vectors of one output."""
    unrolled = _UNROLLED.get(size, 1)
    lines = [
        "{",
        "    int32_t i = 0;",
    ]
    lines += [f"    NAME_vec s{t} = NAME_SET(bias);" for t in range(size)]
    lines += [
        f"    NAME_vec {', '.join(f'u{u}_{t} = NAME_SET(0.0f)' for t in range(size))};"
        for u in range(1, unrolled)
    ]
    lines += ["    if (goes_on) {"]
    lines += [f"        s{t} = NAME_LOAD(out + at + {t} * NAME_LANES);" for t in range(size)]
    lines += ["    }"]
    if unrolled > 1:
        lines += [f"    for (; i + {unrolled} <= count; i += {unrolled}) {{"]
        for u in range(unrolled):
            lines += _one_tap(size, f"u{u}_" if u else "s", f"i + {u}", "        ")
        lines += ["    }"]
    lines += ["    for (; i < count; i++) {", *_one_tap(size, "s", "i", "        "), "    }"]
    for u in range(1, unrolled):
        lines += [f"    s{t} = NAME_ADD(s{t}, u{u}_{t});" for t in range(size)]
    lines += ["    if (!end) {"]
    lines += [f"        NAME_STORE(out + at + {t} * NAME_LANES, s{t});" for t in range(size)]
    lines += ["        return;", "    }"]
    lines += [f"    NAME_finish(s{t}, end, residual, out, at + {t} * NAME_LANES);" for t in range(size)]
    return "\n".join([*lines, "}"])


def _one_tap(size: int, sums: str, index: str, indent: str) -> list[str]:
    return [
        f"{indent}{{",
        f"{indent}    const float *p = in + offsets[{index}];",
        f"{indent}    const NAME_vec w = NAME_SET(weights[{index}]);",
        *(
            f"{indent}    {sums}{t} = NAME_FMA(w, NAME_LOAD(p + {t} * NAME_LANES), {sums}{t});"
            for t in range(size)
        ),
        f"{indent}}}",
    ]


def _rows(size: int) -> str:
    """Return the function that multiplies with all weights for ``size`` vectors of four outputs."""
    lines = [
        "{",
        "    int32_t i;",
    ]
    for o in range(4):
        value = "bias[0]" if o == 0 else f"outputs > {o} ? bias[{o}] : 0.0f"
        lines += [f"    const NAME_vec b{o} = NAME_SET({value});"]
        lines += [f"    NAME_vec {', '.join(f's{o}_{t} = b{o}' for t in range(size))};"]
    lines += ["    for (i = 0; i < count; i++, weights += 4) {", "        const float *p = in + offsets[i];"]
    lines += ["        NAME_vec w;"]
    lines += [f"        const NAME_vec x{t} = NAME_LOAD(p + {t} * NAME_LANES);" for t in range(size)]
    for o in range(4):
        lines += [f"        w = NAME_SET(weights[{o}]);"]
        lines += [f"        s{o}_{t} = NAME_FMA(w, x{t}, s{o}_{t});" for t in range(size)]
    lines += ["    }"]
    for o in range(4):
        indent = "    "
        if o:
            lines += [f"    if (outputs > {o}) {{"]
            lines += [
                "        out += channel;",
                "        residual = residual ? residual + residual_channel : NULL;",
            ]
            indent = "        "
        lines += [
            f"{indent}NAME_finish(s{o}_{t}, end, residual, out, at + {t} * NAME_LANES);" for t in range(size)
        ]
        lines += ["    }"] if o else []
    return "\n".join([*lines, "}"])
