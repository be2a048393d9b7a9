"""Compile a C file and run it: the proof that it computes what its network does."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcompress.errors import ExportError
from robustcompress.export.c.writing import CFile

COMPILERS = ("cc", "clang", "gcc")
FLAGS = ("-std=c99", "-O2")
_NATIVE = "-march=native"
_SECONDS = 1800


def find_compiler(compilers: Sequence[str] = COMPILERS) -> str | None:
    """Return the first of ``compilers`` that is installed, ``None`` if none is."""
    return next((found for name in compilers if (found := shutil.which(name))), None)


def compile_program(file: CFile, folder: Path, *, compiler: str, flags: Sequence[str] = FLAGS) -> Path:
    """Write the C file into ``folder``, compile its ``main`` and return the program.

    Raises:
        ExportError: If the compiler refuses the file.
    """
    source, program = folder / f"{file.name}.c", folder / f"{file.name}.program"
    source.write_text(file.source, encoding="utf-8")
    command = [compiler, *flags, f"-D{file.name}_MAIN", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise ExportError(
            f"{Path(compiler).name} refuses the C file: {lines[0] if lines else 'no reason given'}. "
            "Report the network that did this."
        )
    return program


def run_program(program: Path, images: Tensor, *, classes: int) -> Tensor:
    """Return the logits ``[batch, classes]`` that a compiled C file computes.

    Raises:
        ExportError: If it fails.
    """
    pixels = np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)
    done = subprocess.run(
        [str(program), "-"], input=pixels.tobytes(), capture_output=True, check=False, timeout=_SECONDS
    )
    if done.returncode or len(done.stdout) != 4 * classes * len(images):
        raise ExportError(
            f"the compiled C file failed: exit status {done.returncode}, {len(done.stdout)} bytes of logits. "
            "Nothing was written. Report the network that did this."
        )
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).reshape(len(images), classes).copy())


def computed_logits(file: CFile, images: Tensor, *, classes: int, compiler: str) -> Tensor:
    """Return the logits ``[batch, classes]`` that the C file computes when compiled for this machine.

    Raises:
        ExportError: If it cannot be compiled, or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = compile_program(file, Path(folder), compiler=compiler, flags=(*FLAGS, _NATIVE))
        except ExportError:  # not every compiler knows the flag
            program = compile_program(file, Path(folder), compiler=compiler)
        return run_program(program, images, classes=classes)
