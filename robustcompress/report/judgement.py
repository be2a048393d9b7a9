"""What attacks found of one network or file that no run stands behind, and its table for terminals."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, computed_field
from rich.console import Console, Group

from robustcompress.report.model import ClassInfo
from robustcompress.report.table import measurement_table
from robustcompress.robustness.alarms.reliability import Reliability
from robustcompress.robustness.evaluation import Evaluation
from robustcompress.robustness.measurement import Measurement
from robustcompress.robustness.subject import WORST
from robustcompress.robustness.threat import Norm


class TwinInfo(BaseModel):
    """How well the network that attacks follow computes what a file does.

    Attributes:
        largest_difference: Of a logit to the runtime's, over the largest logit.
        agreeing: Share of the images that get the same class, 0 to 1.
        images: How many were compared.
        rounded: Whether the file rounds inside, as quantised ones do.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    largest_difference: float
    agreeing: float
    images: int
    rounded: bool


class Judgement(BaseModel):
    """Accuracy of a network or file, clean and under attack, and all that is needed to measure it again.

    Attributes:
        subject: What was judged: the name of an exported file or of an artifact's folder.
        fingerprint: Tells it from others, such as the SHA-256 of a file; empty if it is not known.
        data: The images, with their subset.
        images: Hash of the images.
        norm: Of the threat.
        eps: Of the threat, pixel scale 0 to 1.
        seed: Of every random number.
        batch_size: Images judged at once; attacks draw random numbers for a batch.
        device: Where gradients were computed.
        versions: By package.
        measurements: Clean, each attack, all of them in 8-bit pixels, and the worst case.
        classes: Per class: clean, and right whatever was tried.
        reliability: Whether the robust accuracy may be believed; ``None`` if that was not looked at.
        skipped: Attacks that could not be run, and why.
        no_gradients: Why no attack could follow the subject's own gradients; empty if they could.
        twin: What they followed; ``None`` for a network, which is its own, and where there is nothing.
        transfer_from: Tells the network on which the images of the rows ``transfer`` were made; empty if
            there are none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    subject: str
    fingerprint: str = ""
    data: str
    images: str
    norm: Norm
    eps: float
    seed: int
    batch_size: int
    device: str
    versions: dict[str, str]
    measurements: tuple[Measurement, ...]
    classes: tuple[ClassInfo, ...] = ()
    reliability: Reliability | None = None
    skipped: tuple[str, ...] = ()
    no_gradients: str = ""
    twin: TwinInfo | None = None
    transfer_from: str = ""

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def unreliable(self) -> bool:
        """Whether alarms say that the robust accuracy is not to be believed."""
        return self.reliability is not None and self.reliability.status == "unreliable"

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def robust(self) -> Measurement | None:
        """The worst case over all attacks; ``None`` if it is not to be believed or nothing was tried."""
        return None if self.unreliable else self.measured(WORST)

    @property
    def worst_class(self) -> ClassInfo | None:
        """The class of which the least was standing; ``None`` if no class was counted."""
        counted = [item for item in self.classes if item.count]
        return min(counted, key=lambda item: item.standing / item.count, default=None)

    def measured(self, attack: str, access: str | None = None) -> Measurement | None:
        """Return one measurement, if it was made; the attack may be named by its beginning."""
        for row in self.measurements:
            if row.attack.startswith(attack) and access in (None, row.access):
                return row
        return None


def class_rows(found: Evaluation, names: Sequence[str]) -> Iterator[ClassInfo]:
    """Yield each subject's classes: how many images were right clean, and whatever was tried.

    Args:
        found: What an evaluation found.
        names: Of the classes, by label.
    """
    for subject, outcomes in found.outcomes.items():
        clean, standing = dict(outcomes)["clean"], found.standing(subject)
        for label, name in enumerate(names):
            own = found.labels == label
            yield ClassInfo(
                subject=subject,
                label=name,
                count=int(own.sum()),
                clean=int((clean & own).sum()),
                standing=int((standing & own).sum()),
            )


def render_judgement(found: Judgement) -> Group:
    """Return headline, table and whatever a reader must know of them, for a rich console."""
    doubted = {found.subject} if found.unreliable else ()
    table = measurement_table(found.measurements, judged_on="test", doubted=doubted)
    return Group(_headline(found), table, *_remarks(found))


def print_judgement(found: Judgement, console: Console | None = None) -> None:
    """Print the table, by default on stdout."""
    (console or Console(highlight=False)).print(render_judgement(found), markup=False)


def _headline(found: Judgement) -> str:
    clean = found.measurements[0]
    threat = f"{'Linf' if found.norm == 'linf' else 'L2'} eps {found.eps:.4g}"
    start = f"{found.subject} on {found.data}: {clean.accuracy:.1%} clean"
    if found.unreliable:
        return f"{start}; robust accuracy under {threat} withheld: unreliable"
    if found.robust is None:
        return start
    low, high = found.robust.interval
    by = f"{found.robust.access} attacks" + (" alone" if found.no_gradients else "")
    return f"{start}, {found.robust.accuracy:.1%} ({low:.1%} to {high:.1%}) under {threat}, {by}"


def _remarks(found: Judgement) -> Iterator[str]:
    worst = found.worst_class
    if worst is not None and found.robust is not None:
        yield (
            f"worst class {worst.label}: {worst.standing / worst.count:.1%} of {worst.count} images stand, "
            f"{worst.clean / worst.count:.1%} clean"
        )
    if found.twin is not None:
        yield (
            f"gradients are those of the file's own graph: its logits differ from ONNX Runtime's by "
            f"{found.twin.largest_difference:.1g} of the largest one at most, {found.twin.agreeing:.1%} of "
            f"{found.twin.images} images get the same class"
        )
    if found.no_gradients:
        yield f"no attack followed the gradients of {found.subject}: {found.no_gradients}"
        yield "an attack that did would break more: take the robust accuracy as an upper bound"
    yield from found.skipped
    if found.reliability is not None and found.reliability.status != "no alarm":
        yield str(found.reliability)
