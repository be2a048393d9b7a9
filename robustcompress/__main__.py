"""``python -m robustcompress``, as ``torchrun -m robustcompress`` needs it."""

from robustcompress.cli.main import run

run()
