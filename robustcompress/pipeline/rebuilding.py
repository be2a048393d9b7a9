"""The network that an artifact was made from, built anew."""

from collections.abc import Mapping

from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.recipe import Factory
from robustcompress.seeding import borrowed_generators
from robustcompress.zoo.networks import Network


def build(architecture: Mapping[str, object], *, where: object, allow_import: bool) -> nn.Module:
    """Return the dense network that ``architecture`` describes, with freshly drawn weights.

    Args:
        architecture: As an artifact holds it.
        where: Its folder, for messages.
        allow_import: Whether a factory that it names may be imported.

    Raises:
        ConfigError: If it says nothing, or names a factory that may not be imported.
    """
    if "kind" in architecture:
        with borrowed_generators():
            return Network.find(dict(architecture)).build()
    if "factory" not in architecture:
        raise ConfigError(f"{where} holds a network that is not of the zoo; pass model=YourNetwork().")
    if not allow_import:
        raise ConfigError(
            f"{where} was made with {architecture['factory']!r}, which loading will not import unasked. "
            "Pass model=, or allow_import=True if you trust it."
        )
    with borrowed_generators():
        return Factory.model_validate(dict(architecture)).build()
