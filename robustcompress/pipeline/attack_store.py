"""What attacks made, on the disk until an evaluation is finished: a long one goes on where it stopped."""

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustcompress.storage.atomic import write_bytes


class AttackStore:
    """A folder of adversarial images, one file for each attack and batch.

    Whatever the images depend on belongs to ``identity``: another one gets another folder.

    Attributes:
        folder: Where the images are.
    """

    folder: Path

    def __init__(self, root: Path, identity: Mapping[str, object]) -> None:
        """Use the folder of ``identity`` under ``root``, which is made when it is needed.

        Args:
            root: Holds one folder for each identity.
            identity: What the images depend on, as plain data.
        """
        text = json.dumps(identity, sort_keys=True)
        self.folder = root / sha256(text.encode()).hexdigest()[:16]

    def get(self, key: str) -> Tensor | None:
        """Return the images kept under ``key``; ``None`` if there are none or the file is damaged."""
        try:
            return load(self._path(key).read_bytes())["adversarial"]
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, adversarial: Tensor) -> None:
        """Keep images; they are on the disk when this returns."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"adversarial": adversarial.detach().cpu().contiguous()}))

    def clear(self) -> None:
        """Delete everything, since the evaluation is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{sha256(key.encode()).hexdigest()[:16]}.safetensors"
