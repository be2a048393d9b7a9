"""What a training stage remembers: its epochs, and how it went."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch brought; accuracies are fractions of the validation images, ``None`` if not judged."""

    epoch: int
    loss: float
    lr: float
    validation_clean: float | None
    validation_robust: float | None
    best: bool
    validation_certified: float | None = None


@dataclass(frozen=True)
class Trained:
    """How a stage went. The model holds the selected epoch's weights.

    Attributes:
        history: Every epoch.
        selected: The epoch whose weights the model holds.
        seconds: All that the stage took, over every process that worked on it.
        input_share: Share of the steps' time that was spent waiting for data, 0 to 1, in this process.
        peak_bytes: Most memory that tensors took on the GPU at once; ``None`` on a CPU.
        teacher: Hash of the teacher's tensors; empty if nobody taught.
    """

    history: tuple[EpochRecord, ...]
    selected: EpochRecord | None
    seconds: float
    input_share: float = 0.0
    peak_bytes: int | None = None
    teacher: str = ""


@dataclass
class Position:
    """Where the loop stands; everything a resumed run needs besides tensors."""

    step: int = 0
    history: list[EpochRecord] = field(default_factory=list[EpochRecord])
    losses: list[float] = field(default_factory=list[float])
    best: tuple[float, float] | None = None
    seconds: float = 0.0

    def values(self) -> dict[str, object]:
        """Return a copy as plain values."""
        return {
            **vars(self),
            "losses": list(self.losses),
            "history": [asdict(record) for record in self.history],
        }
