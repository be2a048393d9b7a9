"""Certify the network and every exported file, and hold the proofs against the attacks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, nn

from robustcompress.events import Progress
from robustcompress.export.claims import bare_sha256
from robustcompress.export.formats import Exported
from robustcompress.export.network import read_network
from robustcompress.export.session import OnnxSession
from robustcompress.pipeline.certificate_file import CertificateFile
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.interrupts import check_stop
from robustcompress.report.model import CertifiedInfo
from robustcompress.robustness.certification import certified_accuracy, certify
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.evaluation import Evaluation
from robustcompress.robustness.order import check_order
from robustcompress.robustness.predictor import Predictor
from robustcompress.seeding import derive_seed
from robustcompress.storage.artifact import Artifact


@dataclass(frozen=True, eq=False)
class _Subject:
    """The network or an exported file; ``fingerprint`` tells it from others."""

    name: str
    predictor: nn.Module | Predictor
    structure: nn.Module | None
    device: torch.device
    fingerprint: str


def certify_all(
    context: Context, network: nn.Module, files: Sequence[Exported], before: Artifact, attacked: Evaluation
) -> tuple[CertifiedInfo, ...]:
    """Return what each certifier of the recipe proves about the network and about each ONNX file.

    Files are certified on the CPU, bounds by the graph that the file holds. Certificates are kept in the
    run's folder as soon as they are made, so that a stopped evaluation goes on with them.

    Raises:
        InterruptedRunError: If the run was asked to stop.
        ModelError: If an image was proven and yet beaten by an attack, or a network has an operation that a
            certifier does not know.
    """
    certifiers = context.recipe.evaluation.certifiers
    if not certifiers:
        return ()
    look_inside = any(certifier.needs_structure for certifier in certifiers)
    subjects = [_Subject("network", network, None, context.device, fingerprint_of(before.tensors))]
    for item in files:
        if item.kind == "onnx":
            structure = read_network(item.path) if look_inside else None
            session, cpu = OnnxSession(item.path), torch.device("cpu")
            subjects.append(_Subject(item.path.name, session, structure, cpu, bare_sha256(item.path)))
    made: list[CertifiedInfo] = []
    for subject in subjects:
        for certifier in certifiers:
            certificates = _certify(context, certifier, subject)
            smoothed = certifier.kind == "smoothing"
            threat = context.recipe.evaluation_threat
            if not smoothed and certifier.norm == threat.norm:
                check_order(
                    certificates,
                    attacked.outcomes[subject.name],
                    threat=threat,
                    certifier=str(certifier),
                    subject=subject.name,
                )
            made.append(
                CertifiedInfo(
                    subject=subject.name,
                    certifier=str(certifier),
                    settings=certifier.model_dump(mode="json"),
                    norm=certifier.norm,
                    smoothed=smoothed,
                    abstained=sum(certificate.predicted is None for certificate in certificates),
                    accuracies=certified_accuracy(certificates, certifier.usual_radii),
                )
            )
    return tuple(made)


def _certify(context: Context, certifier: Certifier, subject: _Subject) -> tuple[Certificate, ...]:
    settings, seed = context.recipe.evaluation, derive_seed(context.recipe.seed, "certify")
    limits = [limit for limit in (settings.certify_limit, settings.limit) if limit is not None]
    identity = {
        "certifier": certifier.model_dump(mode="json", exclude=set(certifier.speed_settings)),
        "seed": seed,
        "device": subject.device.type,
        "network": subject.fingerprint,
    }
    key = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = context.run_dir / "certificates"
    kept = CertificateFile(folder / f"{subject.name}-{certifier.kind}-{key}.jsonl", identity)
    done = len(kept.finished)

    def note(certificate: Certificate) -> None:
        nonlocal done
        kept.append(certificate)
        done += 1
        context.events(Progress("evaluate", f"{certifier} of {subject.name}", done, min(limits, default=0)))
        check_stop(context.stop, "evaluate")

    return certify(
        subject.predictor,
        context.judged,
        certifier=certifier,
        structure=subject.structure,
        seed=seed,
        device=subject.device,
        limit=min(limits, default=None),
        finished=kept.finished,
        on_certificate=note,
    )


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values."""
    digest = sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
