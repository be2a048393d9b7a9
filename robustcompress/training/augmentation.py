"""Changes of training images that keep their class."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Augmentation(BaseModel):
    """Label-preserving changes of training images held in memory.

    Attributes:
        flip: Mirror half of the images left to right.
        shift: Move each image by up to so many pixels each way; what comes in is black.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    flip: bool = False
    shift: int = Field(default=0, ge=0)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of ``images`` ``[batch, channels, height, width]``, of any dtype."""
        batch, _, height, width = images.shape
        device = images.device
        if self.flip:
            mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            reach = 2 * self.shift + 1
            padded = torch.nn.functional.pad(images, [self.shift] * 4)
            offsets = torch.randint(reach, (2, batch, 1), generator=generator, device=device)
            rows = (offsets[0] + torch.arange(height, device=device))[:, :, None]
            columns = (offsets[1] + torch.arange(width, device=device))[:, None, :]
            # The batch index pairs with rows and columns; indexing moves channels to the end.
            which = torch.arange(batch, device=device)[:, None, None]
            images = padded[which, :, rows, columns].permute(0, 3, 1, 2)
        return images
