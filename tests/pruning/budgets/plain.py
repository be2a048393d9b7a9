"""A site of nothing but numbers."""

from collections.abc import Mapping, MutableMapping

from torch import Tensor

from robustcompress.pruning.patterns import Site


class PlainSite(Site):
    """So many units and no network."""

    def __init__(
        self,
        units: int,
        *,
        granularity: int = 1,
        minimum_kept: int = 1,
        shape: tuple[int, ...] | None = None,
        fixed_removed: int | None = None,
    ) -> None:
        self.name = "plain"
        self.shape = shape or (units,)
        self.fan_in = 1
        self.parameters = ("plain.weight",)
        self.granularity = granularity
        self.minimum_kept = minimum_kept
        self.fixed_removed = fixed_removed

    def saliency(self, parameters: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        raise NotImplementedError

    def bake(self, parameters: Mapping[str, Tensor], mask: Tensor) -> None:
        raise NotImplementedError
