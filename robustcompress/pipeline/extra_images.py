"""The extra images that a recipe names, mixed into its training images."""

import torch

from robustcompress.data import ImageSet
from robustcompress.recipe import Recipe
from robustcompress.training.batches import Source
from robustcompress.training.extra import ExtraData, MixedSource
from robustcompress.zoo.numpy_images import channels_first, labelled_arrays, labels_of


def with_extra(labelled: Source, recipe: Recipe, extra: ExtraData, device: torch.device) -> Source:
    """Return ``labelled``, what is held out already taken from it, with the extra images in each batch.

    Raises:
        DataError: If their file cannot be read, or they do not fit the training images.
    """
    images, labels = labelled_arrays(extra.path)
    found = labels_of(labels, extra.path)
    highest = int(found.max(initial=0))
    return MixedSource(
        labelled,
        ImageSet(
            images=torch.from_numpy(channels_first(images, extra.path)),
            labels=torch.from_numpy(found),
            # The network says how many classes there are; its logits are checked against each batch.
            classes=tuple(str(number) for number in range(highest + 1)),
            name=extra.path.name,
        ),
        share=extra.share,
        batch_size=recipe.pretrain.batch_size,
        seed=recipe.seed,
        augmentation=recipe.augmentation,
        device=device,
    )
