"""The embedded default, end to end: how long it takes, and what the exported file is worth.

    python benchmarks/quickstart.py [--quick] [--out FOLDER] [--json]

Runs ``robustcompress prune`` as a user does, then judges the exported file on all 10,000 test images of
Fashion-MNIST: clean, and under PGD-20 at Linf eps 0.1 (step size 0.01, random start; images made on the
network with its gradients, scored in ONNX Runtime). The files of Fashion-MNIST must be where the data set is
looked for. With --quick fewer epochs are trained and 1,000 test images judged: figures then have no targets.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import commit

import robustcompress

QUICK = [
    *("--set", "pretrain.epochs=2", "--set", "prune.epochs=1", "--set", "finetune.epochs=1"),
    *("--set", "evaluation.limit=100", "--set", "evaluation.curve=[]"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-quickstart"))
    parser.add_argument("--json", action="store_true", help="only the last line")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "robustcompress.cli.main", "prune", "--out", str(args.out), "--json"]
    done = subprocess.run([*command, *(QUICK if args.quick else [])], stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - started
    result = json.loads(done.stdout)
    file = result["files"][0]
    network = robustcompress.load(result["artifact"])
    test = robustcompress.datasets.FashionMnist(test_size=1000 if args.quick else None).load("test")
    judged = robustcompress.evaluate(
        network,
        test.batches(500),
        threat=robustcompress.Threat(eps=0.1),
        attacks=[robustcompress.attacks.Pgd(steps=20, step_size=0.01)],
        seed=0,
        device="cpu",
        files={"file": robustcompress.OnnxSession(file["path"])},
    )
    measured = {row.attack: row.accuracy for row in judged.measurements if row.subject == "file"}
    targets = (None, None, None) if args.quick else (180.0, 0.77, 0.58)
    figures = [
        {"name": "seconds of robustcompress prune", "value": round(seconds, 1), "target": targets[0]},
        {"name": "file, clean accuracy", "value": measured["clean"], "target": targets[1]},
        {"name": "file, accuracy under PGD-20", "value": measured["PGD-20x1"], "target": targets[2]},
        {
            "name": "dense file over file, bytes",
            "value": file["dense_size_bytes"] / file["size_bytes"],
            "target": None,
        },
    ]
    for figure in figures:
        figure["higher_is_better"] = not str(figure["name"]).startswith("seconds")
    if not args.json:
        for figure in figures:
            print(f"{figure['name']:<40} {figure['value']:.4g}")
    print(json.dumps({"figures": figures, "device": result["report"]["run"]["device"], "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
