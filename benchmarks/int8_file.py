"""An int8 file, judged by images made on the float network only, and by all that can be tried on the file.

    python benchmarks/int8_file.py [--quick] [--images 200] [--out FOLDER] [--json]

The "trades" network of benchmarks/attack.py, exported and quantised by ONNX Runtime (QDQ, per channel,
weights of 7 bits, calibrated on 128 training images), under AutoAttack at Linf eps 0.1. `transfer`: images
that AutoAttack made on the float network, scored by the file's session. `protocol`: those, AutoAttack on the
twin that is made from the file, Square on the session, and all of them again in 8-bit pixels, scored by the
session.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from attack import CASES, test_images, trained
from common import commit
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import Tensor, nn

import robustcompress


class Rows(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Calibration images, one by one."""

    def __init__(self, name: str, images: Tensor) -> None:
        self._rows: Iterator[dict[str, Any]] = iter([{name: row[None].numpy()} for row in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def quantised(network: nn.Module, images: Tensor, folder: Path) -> Path:
    """Return an int8 file of the network."""
    plain, found = folder / "float.onnx", folder / "int8.onnx"
    robustcompress.formats.Onnx(style="dense").write(network, plain, images=images[:8], metadata={})
    name = onnx.load(plain).graph.input[0].name
    quantize_static(
        str(plain),
        str(found),
        Rows(name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # signed weights of 8 bits saturate on processors without VNNI
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images and little training, under a minute")
    parser.add_argument("--images", type=int, default=None, help="test images [200, quick 8]")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out = args.out or Path("runs") / ("benchmark-attack-quick" if args.quick else "benchmark-attack")
    case = CASES["trades"]
    network = trained(case, out / "trades", quick=args.quick)
    images, labels = test_images(args.images or (8 if args.quick else 200), quick=args.quick)
    data_set = robustcompress.datasets.FashionMnistMini().open("train")
    assert isinstance(data_set, robustcompress.ImageSet)
    path = quantised(network, data_set.images[:128].float() / 255, out)
    session = robustcompress.OnnxSession(path, threads=1)
    twin = robustcompress.read_twin(path, session, images)
    found = robustcompress.evaluate(
        network,
        [(images, labels)],
        threat=robustcompress.Threat(eps=case.eps),
        attacks=[robustcompress.attacks.AutoAttack()],
        seed=0,
        device="cpu",
        files={"int8": robustcompress.Target(session, twin.network)},
    )
    rows = [row for row in found.measurements if "part of" not in row.settings]
    if not args.json:
        print("| subject | attack | access | accuracy |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row.subject} | {row.attack} | {row.access} | {row.accuracy:.1%} |")
        print(f"twin: largest difference {twin.largest_difference:.2g}, same class {twin.agreeing:.1%}")
    file = {(row.attack, row.access): row.accuracy for row in rows if row.subject == "int8"}
    transfer, protocol = file["AutoAttack-standard", "transfer"], file["worst case", "white-box"]
    figures = [
        {
            "name": "int8: accuracy by transfer only minus by the protocol, points",
            "value": round(100 * (transfer - protocol), 2),
            "target": None,
            "higher_is_better": True,
        },
        {
            "name": "int8: robust accuracy by the protocol",
            "value": round(protocol, 4),
            "target": None,
            "higher_is_better": True,
        },
    ]
    print(json.dumps({"figures": figures, "device": "cpu", "commit": commit()}))


if __name__ == "__main__":
    main()
