import random

import pytest
import torch

from robustcompress.report.model import (
    CertifiedInfo,
    Curve,
    CurvePoint,
    EpochInfo,
    ExampleInfo,
    FileInfo,
    FrozenPart,
    LayerInfo,
    NetworkInfo,
    Report,
    RunInfo,
    SiteHistogram,
    StageInfo,
    as_png,
    magnitude_histogram,
)
from robustcompress.robustness.certification import CertifiedAccuracy
from robustcompress.robustness.measurement import Measurement

LAYERS = ("features.0", "features.3", "hidden.0", "classifier")


def rows(subject: str, access: str) -> list[Measurement]:
    common = {"subject": subject, "seed": 0, "count": 1000}
    threat = {"norm": "linf", "eps": 0.1, "access": access}
    settings = {"steps": 20, "restarts": 1, "step_size": 0.0125}
    return [
        Measurement.model_validate(row)
        for row in (
            {**common, "attack": "clean", "access": "none", "correct": 801},
            {**common, **threat, "attack": "PGD-20x1", "correct": 652, "settings": settings},
            {**common, **threat, "attack": "APGD-CE-20x1", "correct": 648, "settings": settings},
            {**common, **threat, "attack": "worst case", "correct": 641, "settings": {"attacks": "both"}},
        )
    ]


def certified(subject: str) -> list[CertifiedInfo]:
    def part(certifier: str, norm: str, correct: tuple[int, ...], radii: tuple[float, ...]) -> CertifiedInfo:
        return CertifiedInfo(
            subject=subject,
            certifier=certifier,
            settings={"kind": certifier.split()[0], "slack": 1e-4},
            norm=norm,
            smoothed=norm == "l2",
            abstained=31,
            accuracies=tuple(
                CertifiedAccuracy(radius=radius, correct=n, count=200)
                for radius, n in zip(radii, correct, strict=True)
            ),
        )

    return [
        part("best", "linf", (137, 113), (0.05, 0.1)),
        part("interval", "linf", (129, 101), (0.05, 0.1)),
        part("smoothing 0.25", "l2", (151, 127, 96), (0.0, 0.25, 0.5)),
    ]


def stage(name: str, epochs: int) -> StageInfo:
    draw = random.Random(name)
    infos = tuple(
        EpochInfo(
            epoch=epoch,
            loss=1.5 / epoch,
            lr=0.1,
            validation_clean=0.7 + 0.01 * epoch + 0.01 * draw.random(),
            validation_robust=0.5 + 0.01 * epoch,
            best=True,
        )
        for epoch in range(1, epochs + 1)
    )
    return StageInfo(name=name, seconds=12.5, epochs=infos, selected=infos[-1])


@pytest.fixture
def report() -> Report:
    """A whole report, as a run of the embedded example leaves it."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 400, generator=generator)
    masks = weights.abs() > 1.6
    pictures = torch.rand(2, 1, 28, 28, generator=generator)
    moved = (pictures + 0.1 * torch.randn(pictures.shape, generator=generator).sign()).clamp(0, 1)
    return Report(
        run=RunInfo(
            name="default",
            created="2026-11-01T12:00:00+00:00",
            seconds=75.0,
            device="cpu",
            seed=0,
            versions={"python": "3.11.7", "torch": "2.13.0"},
            recipe={"sparsity": 0.9, "validation": {"attack": {"kind": "pgd", "steps": 10}}},
            data="fashion_mnist_mini",
            data_fingerprint="ab" * 32,
            judged_on="test",
            warnings=("look <here>",),
        ),
        network=NetworkInfo(
            name="SmallCnn",
            parameters=207_354,
            weights=206_992,
            kept_weights=20_699,
            macs=506_176,
            compact_macs=506_176,
            effective_macs=50_627,
            frozen=(FrozenPart(name="stem", reason="ignored by 'stem'"),),
        ),
        stages=(stage("pretrain", 8), stage("prune", 4), stage("finetune", 5)),
        layers=tuple(LayerInfo(name=name, size=1000 * (i + 1), kept=100) for i, name in enumerate(LAYERS)),
        histograms=tuple(
            SiteHistogram(name=name, histogram=magnitude_histogram(weights[i], masks[i]))
            for i, name in enumerate(LAYERS)
        ),
        measurements=tuple(rows("network", "white-box") + rows("model.onnx", "transfer")),
        files=(
            FileInfo(
                name="model.onnx",
                format="onnx",
                style="compact",
                size_bytes=100_392,
                dense_size_bytes=832_333,
                sha256="cd" * 32,
                largest_difference=9.9e-8,
                images_compared=8,
                details={"opset": "18"},
            ),
        ),
        artifact_bytes=110_327,
        dense_bytes=830_848,
        curve=Curve(
            attack="PGD-20x1",
            norm="linf",
            count=200,
            points=tuple(CurvePoint(eps=0.05 * i, accuracy=0.8 - 0.12 * i) for i in range(5)),
        ),
        certified=tuple(certified("network") + certified("model.onnx")),
        examples=tuple(
            ExampleInfo(
                original=as_png(pictures[i]),
                adversarial=as_png(moved[i]),
                label="T-shirt/top",
                attack="PGD-20x1",
                clean={"network": "T-shirt/top", "model.onnx": "T-shirt/top"},
                attacked={"network": "Shirt", "model.onnx": "<script>alert(1)</script>"},
            )
            for i in range(2)
        ),
    )
