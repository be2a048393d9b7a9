"""A run on an image folder that does not fit into the memory it may use."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustcompress import Compressor, Recipe


def test_a_folder_too_large_for_memory_trains_as_one_in_memory_does(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            for number in range(count):
                pixels = generator.integers(0, 128, (64, 64, 3)) + 100 * label
                path = tmp_path / "data" / split / name / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)

    def run(name: str, memory_limit_mb: int) -> dict[str, torch.Tensor]:
        stage = {"epochs": 1, "lr": 0.05, "batch_size": 32}
        recipe = Recipe.from_values(
            {
                "model": "small_cnn",
                "data": {
                    "kind": "image_folder",
                    "dir": tmp_path / "data",
                    "memory_limit_mb": memory_limit_mb,
                },
                "threat": {"eps": 0.02},
                "objective": "natural",
                "pretrain": stage,
                "validation": {"attack": {"kind": "pgd", "steps": 1}},
                "stages": ["pretrain"],
                "loader_workers": 1,
            }
        )
        return (
            Compressor(recipe=recipe, run_dir=tmp_path / name, progress=False).compress().network.state_dict()
        )

    files, memory = run("files", 1), run("memory", 4096)
    # The same images are held out, and the order is the seed's alone.
    assert all(torch.equal(files[name], memory[name]) for name in memory)
    events = [json.loads(line) for line in (tmp_path / "files" / "events.jsonl").read_text().splitlines()]
    epoch = next(event for event in events if event["event"] == "EpochDone")
    assert 0 < epoch["metrics"]["input_share"] < 1
