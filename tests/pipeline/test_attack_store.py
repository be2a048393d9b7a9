from pathlib import Path

import torch

from robustcompress.pipeline.attack_store import AttackStore

IDENTITY = {"seed": 0, "network": "abc"}


def test_what_was_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    AttackStore(tmp_path, IDENTITY).put("network/FGSM/0", images)
    found = AttackStore(tmp_path, dict(reversed(IDENTITY.items()))).get("network/FGSM/0")
    assert found is not None
    torch.testing.assert_close(found, images, rtol=0, atol=0)


def test_other_keys_and_other_identities_hold_nothing(tmp_path: Path) -> None:
    AttackStore(tmp_path, IDENTITY).put("network/FGSM/0", torch.rand(2))
    assert AttackStore(tmp_path, IDENTITY).get("network/FGSM/1") is None
    assert AttackStore(tmp_path, IDENTITY | {"seed": 1}).get("network/FGSM/0") is None


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    store = AttackStore(tmp_path, IDENTITY)
    store.put("key", torch.rand(2))
    (file,) = store.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert store.get("key") is None


def test_a_finished_evaluation_leaves_nothing_behind(tmp_path: Path) -> None:
    store = AttackStore(tmp_path / "attacks", IDENTITY)
    store.put("key", torch.rand(2))
    store.clear()
    assert list(tmp_path.iterdir()) == []
    store.clear()
    other = AttackStore(tmp_path / "attacks", {"other": 1})
    other.put("key", torch.rand(2))
    store.put("key", torch.rand(2))
    store.clear()
    assert other.get("key") is not None
