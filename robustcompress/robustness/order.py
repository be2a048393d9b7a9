"""A proof that no attack succeeds, and an attack that does, cannot both be right."""

from collections.abc import Sequence

from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.certifiers import Certificate
from robustcompress.robustness.threat import Threat


def check_order(
    certificates: Sequence[Certificate],
    outcomes: Sequence[tuple[str, Tensor]],
    *,
    threat: Threat,
    certifier: str,
    subject: str,
) -> None:
    """Check, image by image, that what is certified is right clean and withstood every attack.

    So certified accuracy at the threat's radius is at most the accuracy under each attack, and that at most
    the clean one. Certificates and attacks must be about the same predictor, norm and images; a smoothed
    network is another predictor.

    Args:
        certificates: Of images by their index; those that do not reach the threat's radius say nothing.
        outcomes: Pairs of ``clean`` or an attack, and bool ``[images]``: whether the subject was right.
        threat: Of the attacks.
        certifier: Its name, for the error.
        subject: What was judged, for the error.

    Raises:
        ModelError: If an image is certified and was beaten: one of the two has a fault, or the network
            computes something else in one of them.
    """
    for certificate in certificates:
        if not certificate.holds(threat.eps):
            continue
        for attack, right in outcomes:
            if certificate.index < len(right) and not bool(right[certificate.index]):
                raise ModelError(
                    f"image {certificate.index}: {certifier} proves class {certificate.label} of {subject} "
                    f"as far as {certificate.radius:g}, but {attack} finds another one within {threat}. One "
                    "of them is wrong: please report this network."
                )
