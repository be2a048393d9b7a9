"""Label images by a given network, for training on them beside images that people labelled."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcompress.data import as_pixels
from robustcompress.errors import ConfigError, DataError, ModelError
from robustcompress.events import Events, Progress, Sink
from robustcompress.pipeline.context import resolve_device
from robustcompress.robustness.predictor import as_predictor, finite_logits
from robustcompress.storage.atomic import write_bytes
from robustcompress.training.loop import float32_math
from robustcompress.zoo.image_file import SUFFIXES, decode
from robustcompress.zoo.numpy_images import channels_first, read_arrays


@dataclass(frozen=True)
class PseudoLabels:
    """What was labelled.

    Attributes:
        path: The .npz file: ``images``, ``labels``, and ``confidence``, the softmax of each label.
        per_class: How many images each class got.
        unsure: Images left out because the network was less sure than asked.
        corrupt: Files left out because they cannot be decoded.
    """

    path: Path
    per_class: tuple[int, ...]
    unsure: int
    corrupt: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**vars(self), "path": str(self.path), "corrupt": [str(path) for path in self.corrupt]}


def pseudo_label(
    source: str | Path,
    network: nn.Module,
    out: str | Path,
    *,
    channels: int = 3,
    image_size: int | None = None,
    min_confidence: float = 0.0,
    skip_corrupt: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    sinks: Sequence[Sink] = (),
) -> PseudoLabels:
    """Give each image the class that ``network`` says, and write what ``extra_data`` of a recipe takes.

    Args:
        source: A folder, whose PNG and JPEG files at any depth are taken in the order of their paths; or an
            .npy file of uint8 images.
        network: Takes images in [0, 1].
        out: The .npz file; never overwritten.
        channels: Of images of a folder: 1 turns them grey, 3 into red, green and blue.
        image_size: Scale the shorter side of a folder's images to this and cut out the middle square.
        min_confidence: Leave out images whose label has a smaller softmax, 0 to 1.
        skip_corrupt: Leave out files that cannot be decoded; otherwise the first one is an error.
        batch_size: Images at once.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        sinks: Receivers of progress events.

    Raises:
        ConfigError: If ``out`` exists or is no .npz file, or ``min_confidence`` is not in [0, 1].
        DataError: If there are no images, one is corrupt, they differ in size, or none is left.
        ModelError: If the network cannot be called with them, or a logit is not finite.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".npz" or out.exists():
        raise ConfigError(f"expected a new .npz file for the labels; got {out}. Name another file.")
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"min_confidence must be 0 to 1; got {min_confidence}.")
    images, corrupt = _images(source, channels, image_size, skip_corrupt)
    place, events = resolve_device(device), Events(sinks)
    labels, confidence = [], []
    classes = 0
    batches = -(-len(images) // batch_size)
    with float32_math("fp32"), as_predictor(network.to(place), place) as predictor:
        for number in range(batches):
            pixels = as_pixels(torch.from_numpy(images[number * batch_size : (number + 1) * batch_size]))
            logits = _logits(predictor, pixels.to(place))
            sure, label = logits.float().softmax(1).max(1)
            labels.append(label.cpu().numpy())
            confidence.append(sure.cpu().numpy())
            classes = logits.shape[1]
            events(Progress("pseudo-label", source.name, number + 1, batches))
    found, sureness = np.concatenate(labels), np.concatenate(confidence)
    kept = sureness >= min_confidence
    if not kept.any():
        raise DataError(
            f"{source}: no image has a label of confidence {min_confidence} or more; the highest is "
            f"{sureness.max():.3f}. Set a lower min_confidence."
        )
    buffer = io.BytesIO()
    np.savez(buffer, images=images[kept], labels=found[kept], confidence=sureness[kept])
    write_bytes(out, buffer.getbuffer())
    counts = np.bincount(found[kept], minlength=classes)
    return PseudoLabels(
        path=out,
        per_class=tuple(int(count) for count in counts),
        unsure=int((~kept).sum()),
        corrupt=corrupt,
    )


def _logits(predictor: Any, images: Tensor) -> Tensor:
    nothing = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    try:
        return finite_logits(predictor, images, nothing, where="pseudo-label")
    except RuntimeError as error:
        raise ModelError(
            f"the network cannot be called with images {list(images.shape)}: {error}. Set image_size and "
            "channels to what it takes."
        ) from error


def _images(
    source: Path, channels: int, image_size: int | None, skip_corrupt: bool
) -> tuple[NDArray[np.uint8], tuple[Path, ...]]:
    """Return uint8 ``[count, channels, height, width]``, and the files that were left out."""
    if source.suffix == ".npy":
        return channels_first(read_arrays(source)["array"], source), ()
    decoded: list[NDArray[np.uint8]] = []
    corrupt: list[Path] = []
    for path in _files(source):
        try:
            pixels = decode(path, channels=channels, side=image_size)
        except DataError:
            if not skip_corrupt:
                raise
            corrupt.append(path)
            continue
        if decoded and pixels.shape != decoded[0].shape:
            raise DataError(
                f"{path} is {pixels.shape[1]}x{pixels.shape[2]}, others are {decoded[0].shape[1]}x"
                f"{decoded[0].shape[2]}. Set image_size to bring all images to one size."
            )
        decoded.append(pixels)
    if not decoded:
        raise DataError(f"{source}: found no {', '.join(SUFFIXES)} files that can be decoded.")
    return np.stack(decoded), tuple(corrupt)


def _files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder of images or an .npy file.")
    found = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    return iter(sorted(path for path in found if not path.name.startswith(".")))
