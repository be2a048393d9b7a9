"""What an attack changed, made visible."""

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from robustcompress.errors import StorageError
from robustcompress.report.model import ExampleInfo

MIDDLE = 128


def magnified(examples: Sequence[ExampleInfo]) -> tuple[float, list[str]]:
    """Return the differences between adversarial images and originals, all magnified alike.

    Middle grey is no change; brighter and darker pixels (of each colour) were raised and lowered. The
    factor brings the largest change of all examples to the end of the scale.

    Args:
        examples: With pictures of equal shape in each pair.

    Returns:
        The factor, and one PNG in base64 for each example.

    Raises:
        StorageError: If a picture is no PNG in base64, or the two of an example differ in shape.
    """
    changes: list[NDArray[np.int16]] = []
    for number, example in enumerate(examples):
        original = _pixels(example.original, f"examples.{number}.original")
        adversarial = _pixels(example.adversarial, f"examples.{number}.adversarial")
        if original.shape != adversarial.shape:
            raise StorageError(
                f"examples.{number}: expected two pictures of one shape; got {original.shape} and "
                f"{adversarial.shape}. Evaluate the run again."
            )
        changes.append(adversarial - original)
    largest = max((int(np.abs(change).max()) for change in changes if change.size), default=0)
    factor = (255 - MIDDLE) / max(largest, 1)
    return factor, [_png(change, factor) for change in changes]


def _pixels(text: str, field: str) -> NDArray[np.int16]:
    """Return int16 ``[height, width]`` or ``[height, width, 3]``."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("L" if picture.mode == "L" else "RGB")).astype(np.int16)
    except (binascii.Error, OSError, SyntaxError, UnidentifiedImageError) as error:
        raise StorageError(
            f"{field}: expected a PNG in base64; got {text[:24]!r} ({type(error).__name__}). "
            "Evaluate the run again."
        ) from error


def _png(change: NDArray[np.int16], factor: float) -> str:
    shown = np.clip(np.rint(MIDDLE + factor * change), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
