"""AutoAttack as its authors wrote it, from the package ``pyautoattack``, kept from leaving traces."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from robustcompress.errors import ConfigError, MissingExtraError, ModelError
from robustcompress.robustness.attacks import Attack, Logits, Settings
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import borrowed_generators

Version: TypeAlias = Literal["standard", "plus", "rand"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_FEWEST_CLASSES: dict[Version, int] = {"standard": 10, "plus": 10, "rand": 3}


class Reference(Attack):
    """The authors' AutoAttack. Images that it does not break come back as they are.

    It is asked for through :class:`~robustcompress.robustness.attacks.autoattack.AutoAttack`. It leaves no
    traces: the global generators get their states back, no parameter gets a ``.grad``, and a trace function
    (a debugger's, a coverage tool's) stays installed.

    Attributes:
        version: As of AutoAttack.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690; https://github.com/fra31/auto-attack.
    """

    version: Version = "standard"

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        """Return one image per input within ``threat``, as every attack does.

        Raises:
            MissingExtraError: If ``pyautoattack`` is not installed.
            ConfigError: If the package cannot attack such images, classes or pixel ranges.
            ModelError: If the logits have no gradient.
        """
        auto_attack = _package()
        images = images.detach()
        with torch.no_grad():
            classes = logits_of(images[:1]).shape[1]
        self._check(images, classes, threat)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        with borrowed_generators(), _kept_trace():
            adversary = auto_attack(
                _without_parameter_gradients(logits_of),
                norm=_NORMS[threat.norm],
                eps=threat.eps,
                seed=seed,
                version=self.version,
                device=images.device,
            )
            adversarial: Tensor = adversary.run_standard_evaluation(
                images.clone(), labels, batch_size=max(len(images), 1)
            )[0]
        return adversarial.detach()

    def _check(self, images: Tensor, classes: int, threat: Threat) -> None:
        instead = "Use engine: ours, which can."
        fewest = _FEWEST_CLASSES[self.version]
        if classes < fewest:
            raise ConfigError(
                f"pyautoattack's {self.version} version needs {fewest} classes or more; this network has "
                f"{classes}. {instead}"
            )
        if (threat.lower, threat.upper) != (0.0, 1.0):
            raise ConfigError(
                f"pyautoattack clips pixels to 0 and 1; the threat's range is {threat.lower:g} to "
                f"{threat.upper:g}. {instead}"
            )
        if images.ndim != 4:
            raise ConfigError(
                "pyautoattack attacks images [batch, channels, height, width]; got "
                f"{list(images.shape)}. {instead}"
            )
        if images.dtype != torch.float32:
            raise ConfigError(f"pyautoattack computes in float32; the images are {images.dtype}. {instead}")

    def settings(self, threat: Threat) -> Settings:
        return {**super().settings(threat), "package": reference_release()}

    def __str__(self) -> str:
        return f"pyautoattack-{self.version}"


def reference_release() -> str:
    """Return name and version of the installed package, for the record.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return f"pyautoattack {version('pyautoattack')}"
    except PackageNotFoundError as error:
        raise _missing() from error


def _package() -> Any:
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise _missing() from error
    return AutoAttack


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "engine: reference runs the package pyautoattack, which is not installed; install it with: "
        "pip install 'robustcompress[autoattack]'"
    )


@contextmanager
def _kept_trace() -> Generator[None, None, None]:
    """Put the trace function back, which the package's check for dynamic defenses removes."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)


def _without_parameter_gradients(logits_of: Logits) -> Logits:
    """Return a predictor through which ``backward()`` reaches the images and no parameter."""

    def predict(images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _ToImagesOnly.apply(images, logits_of)  # type: ignore[no-untyped-call]  # torch's own
            return logits
        with torch.no_grad():
            return logits_of(images)

    return predict


class _ToImagesOnly(torch.autograd.Function):
    """The network as one operation, whose backward pass asks for the gradient by the images alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, logits_of: Logits) -> Tensor:
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            logits = logits_of(points)
        if not logits.requires_grad:
            raise ModelError(
                "pyautoattack needs logits that depend on the images through differentiable operations; "
                "these do not. Attack the PyTorch network, and judge runtimes by re-scoring the images it "
                "gives."
            )
        ctx.points, ctx.logits = points, logits
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # FAB goes back through one forward pass once per class.
        by_images = torch.autograd.grad(ctx.logits, [ctx.points], list(gradients), retain_graph=True)[0]
        return by_images, None
