"""Measure again what a file, or an artifact, claims of itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field
from torch import Tensor, nn

from robustcompress.errors import ConfigError, DataError, ExportError
from robustcompress.events import Events, Progress, Sink
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.pipeline.claims import Claim, Claims, claims_of, digest_of, images_sha256
from robustcompress.pipeline.context import resolve_device, versions
from robustcompress.robustness.attacks import Ensemble
from robustcompress.robustness.batches import Batches
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.measurement import Measurement
from robustcompress.robustness.target import Target
from robustcompress.training.loop import float32_math
from robustcompress.training.sources import Data, as_source
from robustcompress.zoo.datasets import DataSet

Verdict: TypeAlias = Literal["confirmed", "within", "conservative", "refuted", "not re-run"]

_EXAMPLES = 8


class Checked(BaseModel):
    """One claim, and what was found.

    Attributes:
        claim: The claim.
        verdict: ``confirmed``: the same number of images. ``within``: another number, and the claim lies in
            the 95% interval of what was found. ``conservative``: fewer right than were found, as where the
            claim counts attacks made on the network, too. ``refuted``: more right than were found, or clean
            images either way. ``not re-run``: cannot be measured here, see ``reason``.
        found: What was measured now; ``None`` if it was not.
        reason: Why it was not.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    claim: Claim
    verdict: Verdict
    found: Measurement | None = None
    reason: str = ""


class Verification(BaseModel):
    """What became of the claims.

    Attributes:
        subject: Name of the file or folder.
        claims: What is claimed, and how it was measured.
        checked: Each claim.
        device: Where it was measured now.
        differing: Packages of other versions than in the claims: name to (claimed, now).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    subject: str
    claims: Claims
    checked: tuple[Checked, ...]
    device: str
    differing: dict[str, tuple[str, str]]

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def refuted(self) -> bool:
        """Whether a claim was refuted."""
        return any(item.verdict == "refuted" for item in self.checked)


def verify(
    path: str | Path,
    data: Data | DataSet | str | Mapping[str, object],
    *,
    network: nn.Module | None = None,
    device: str = "auto",
    sinks: Sequence[Sink] = (),
) -> Verification:
    """Run every attack that ``path`` claims to withstand, with the same settings, seed and images.

    On the same kind of device and with the same versions the numbers are the same, to the image. Elsewhere
    sums are rounded otherwise, and a few images at the border may change sides.

    Args:
        path: An ONNX file, or the folder of an artifact.
        data: Test images as :class:`~robustcompress.Compressor` takes them, or a data set, its name, or its
            settings. They must be those of the claims.
        network: What the artifact's folder holds; not for a file.
        device: Where gradients are computed: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        sinks: Receivers of progress events.

    Raises:
        ConfigError: If there is no such data set or device.
        StorageError: If the file, or the claims of a folder, cannot be read.
        ExportError: If it claims nothing, or its claims are about something else.
        DataError: If the images are not those of the claims.
    """
    path = Path(path)
    claims = claims_of(path)
    if digest_of(path) != claims.sha256:
        raise ExportError(
            f"{path.name} is not what its claims are about: it was changed after they were made, or they "
            "were copied from elsewhere. Evaluate it anew."
        )
    place = resolve_device(device)
    source = as_source(
        _images(data),
        batch_size=claims.batch_size,
        seed=claims.seed,
        device=place,
        name="test",
    )
    _check_images(source.in_order(), claims, path.name)
    images = next(iter(source.in_order()))[0][:_EXAMPLES].cpu()
    target = network if network is not None else _target(path, images)
    events = Events(sinks)

    def progress(task: str, done: int, total: int, note: str) -> None:
        events(Progress("verify", task, done, total, note))

    no_gradients = target.reason if isinstance(target, Target) and target.twin is None else ""
    attacks = [
        attack
        for attack in claims.attacks
        if not no_gradients or not attack.needs_gradient or isinstance(attack, Ensemble)
    ]
    with float32_math("fp32"):
        found = evaluate(
            target,
            source.in_order(),
            threat=claims.threat,
            attacks=attacks,
            seed=claims.seed,
            device=place,
            subject=path.name,
            progress=progress,
            keep_examples=0,
            limit=claims.count,
        )
    now = versions()
    return Verification(
        subject=path.name,
        claims=claims,
        checked=tuple(_compare(claims, found.measurements, no_gradients)),
        device=place.type,
        differing={
            name: (claimed, now.get(name, "not installed"))
            for name, claimed in claims.versions.items()
            if now.get(name) != claimed
        },
    )


def _images(data: Data | DataSet | str | Mapping[str, object]) -> Data:
    if not isinstance(data, DataSet | str | Mapping):
        return data
    try:
        return DataSet.find(dict(data) if isinstance(data, Mapping) else data).open("test")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"data: {place}: {first['msg']}; got {first['input']!r}.") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _target(path: Path, images: Tensor) -> Target:
    """Return the file's session, with a twin to follow if its graph is understood."""
    session = OnnxSession(path)
    try:
        return Target(session, read_twin(path, session, images).network)
    except ExportError as error:
        return Target(session, None, str(error))


def _check_images(batches: Batches, claims: Claims, name: str) -> None:
    digest = images_sha256(batches, claims.count)
    if digest != claims.images_sha256:
        raise DataError(
            f"{name} claims something about {claims.count} {claims.judged_on} images of "
            f"{claims.data or 'a data set of its maker'}; these are others. Give the data set, and the "
            "subset of it, on which it was evaluated."
        )


def _compare(claims: Claims, found: Sequence[Measurement], no_gradients: str) -> Iterator[Checked]:
    by_key = {Claim.of(measurement).key: measurement for measurement in found}
    for claim in claims.claims:
        measurement = by_key.get(claim.key)
        if measurement is not None:
            yield Checked(claim=claim, verdict=_verdict(claim, measurement, claims.count), found=measurement)
        elif claim.access == "transfer":
            reason = "its images were made on the network, which the file does not hold"
            yield Checked(claim=claim, verdict="not re-run", reason=reason)
        else:
            reason = no_gradients or "the attack gives no such result here"
            yield Checked(claim=claim, verdict="not re-run", reason=reason)


def _verdict(claim: Claim, found: Measurement, count: int) -> Verdict:
    low, high = found.interval
    share = claim.correct / count
    if claim.correct == found.correct and count == found.count:
        return "confirmed"
    if low <= share <= high:
        return "within"
    return "conservative" if share < low and claim.attack != "clean" else "refuted"
