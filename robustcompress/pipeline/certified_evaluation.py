"""Certify the network and every exported file, and hold the proofs against the attacks."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor, nn

from robustcompress.events import Progress
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
    made: list[CertifiedInfo] = []
    judged = [("network", network, None, context.device, _fingerprint(before.tensors))]
    subjects: list[tuple[str, nn.Module | Predictor, nn.Module | None, torch.device, str]] = [*judged]
    if context.recipe.evaluation.certifiers:
        subjects += [
            (
                item.path.name,
                OnnxSession(item.path),
                read_network(item.path),
                torch.device("cpu"),
                item.sha256,
            )
            for item in files
            if item.kind == "onnx"
        ]
    for name, predictor, structure, device, fingerprint in subjects:
        for certifier in context.recipe.evaluation.certifiers:
            certificates = _certify(
                context,
                certifier,
                predictor,
                structure,
                device,
                fingerprint,
                subject=name,
            )
            smoothed = certifier.kind == "smoothing"
            threat = context.recipe.evaluation_threat
            if not smoothed and certifier.norm == threat.norm:
                check_order(
                    certificates,
                    attacked.outcomes[name],
                    threat=threat,
                    certifier=str(certifier),
                    subject=name,
                )
            made.append(
                CertifiedInfo(
                    subject=name,
                    certifier=str(certifier),
                    settings=certifier.model_dump(mode="json"),
                    norm=certifier.norm,
                    smoothed=smoothed,
                    abstained=sum(certificate.predicted is None for certificate in certificates),
                    accuracies=certified_accuracy(certificates, certifier.usual_radii),
                )
            )
    return tuple(made)


def _certify(
    context: Context,
    certifier: Certifier,
    predictor: nn.Module | Predictor,
    structure: nn.Module | None,
    device: torch.device,
    fingerprint: str,
    *,
    subject: str,
) -> tuple[Certificate, ...]:
    settings, seed = context.recipe.evaluation, derive_seed(context.recipe.seed, "certify")
    limits = [limit for limit in (settings.certify_limit, settings.limit) if limit is not None]
    identity = {
        "certifier": certifier.model_dump(mode="json", exclude=set(certifier.speed_settings)),
        "seed": seed,
        "device": device.type,
        "network": fingerprint,
    }
    key = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = context.run_dir / "certificates"
    kept = CertificateFile(folder / f"{subject}-{certifier.kind}-{key}.jsonl", identity)
    done = len(kept.finished)

    def note(certificate: Certificate) -> None:
        nonlocal done
        kept.append(certificate)
        done += 1
        context.events(Progress("evaluate", f"{certifier} of {subject}", done, min(limits, default=0)))
        check_stop(context.stop, "evaluate")

    return certify(
        predictor,
        context.judged,
        certifier=certifier,
        structure=structure,
        seed=seed,
        device=device,
        limit=min(limits, default=None),
        finished=kept.finished,
        on_certificate=note,
    )


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
