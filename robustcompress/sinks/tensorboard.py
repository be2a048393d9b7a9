"""Events as TensorBoard scalars."""

from pathlib import Path
from typing import Any

from robustcompress.errors import MissingExtraError
from robustcompress.events import EpochDone, Event, RunDone, StageDone, StepDone


class TensorboardSink:
    """Writes loss and learning rate by the step, accuracies by the epoch, under the stage's name.

    Args:
        folder: For TensorBoard's files; made with the first event.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard is not installed; install it with: pip install 'robustcompress[tensorboard]'"
            ) from error
        self._make: Any = lambda: SummaryWriter(str(folder))
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write what the event says, if it is a number over time."""
        if self._writer is None:
            self._writer = self._make()
        if isinstance(event, StepDone):
            self._writer.add_scalar(f"{event.stage}/step_loss", event.loss, event.step)
            self._writer.add_scalar(f"{event.stage}/lr", event.lr, event.step)
        elif isinstance(event, EpochDone):
            for name, value in event.metrics.items():
                self._writer.add_scalar(f"{event.stage}/epoch_{name}", value, event.epoch)
        elif isinstance(event, StageDone | RunDone):
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()
