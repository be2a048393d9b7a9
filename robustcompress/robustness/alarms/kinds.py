"""What is looked for: each alarm, how much of it honest networks show, and what to do."""

from robustcompress.robustness.alarms.check import Alarm

_CARLINI = "Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 4 and 5"
_ATHALYE = "Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section 3.1"
_TRAMER = "Tramer et al. 2020, https://arxiv.org/abs/2002.08347"
_CROCE = "Croce & Hein 2020, https://arxiv.org/abs/2003.01690"
_REAL = (
    "Do not report this robust accuracy: attack the network with what does not follow its gradients (Square, "
    "FAB), or with gradients of a smooth stand-in for the part that hides them (BPDA)."
)

BLIND_GRADIENT = Alarm(
    name="blind_gradient",
    claim="the logits change where their gradient says that they do not, or otherwise",
    tolerance=0.1,
    concern=0.3,
    advice=_REAL,
    source=f"{_ATHALYE}; Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, proposition 1",
)
BLIND_CROSS_ENTROPY = Alarm(
    name="blind_cross_entropy",
    claim="the gradient of the cross-entropy is lost to rounding, that of the margin is not",
    tolerance=0.05,
    concern=0.2,
    advice="The logits are saturated: attack with margin or DLR losses, or divide the logits by a constant.",
    source=f"{_CARLINI}; {_CROCE}, section 4",
)
BLACK_BOX = Alarm(
    name="black_box",
    claim="an attack without gradients breaks what attacks with gradients do not",
    tolerance=0.03,
    concern=0.15,
    advice=_REAL,
    source=_CARLINI,
)
WHOLE_RANGE = Alarm(
    name="whole_range",
    claim="images withstand attacks that may change every pixel to any value",
    tolerance=0.1,
    concern=0.3,
    advice=_REAL,
    source=_CARLINI,
)
MONOTONE = Alarm(
    name="monotone",
    claim="images are broken within a small radius and withstand a larger one",
    tolerance=0.03,
    concern=0.15,
    advice="A larger radius allows all that a smaller one does: the attack fails for another reason. "
    + _REAL,
    source=_CARLINI,
)
STEPS = Alarm(
    name="steps",
    claim="five times the steps break many more images",
    tolerance=0.03,
    concern=0.15,
    advice="The attacks had not converged: attack with more steps until the accuracy stops falling.",
    source=_CARLINI,
)
RESTARTS = Alarm(
    name="restarts",
    claim="more random starts break many more images",
    tolerance=0.05,
    concern=0.2,
    advice="Where an attack begins decides whether it succeeds: the loss is rugged. " + _REAL,
    source=f"{_CARLINI}; {_TRAMER}",
)
MARGIN_BETTER = Alarm(
    name="margin_better",
    claim="attacks on the margin break what attacks on the cross-entropy do not",
    tolerance=0.2,
    concern=0.45,
    advice="Do not rely on cross-entropy: the headline must hold under margin or DLR losses too.",
    source=_CROCE,
)
CROSS_ENTROPY_BETTER = Alarm(
    name="cross_entropy_better",
    claim="attacks on the cross-entropy break what attacks on the margin do not",
    tolerance=0.3,
    concern=0.55,
    advice="Do not rely on margin or DLR losses: the headline must hold under cross-entropy too.",
    source=_CROCE,
)
RANDOM = Alarm(
    name="random",
    claim="the same images give different logits at each call",
    tolerance=0.01,
    concern=0.1,
    advice=(
        "Attack the expectation over the randomness (AutoAttack's version rand), and count an image as right "
        "only if it is right in most of many calls."
    ),
    source=f"{_ATHALYE}, section 3.1; {_CROCE}, section 5 (rand)",
)
BATCH = Alarm(
    name="batch",
    claim="an image's logits depend on which others are in the batch",
    tolerance=0.01,
    concern=0.1,
    advice=(
        "Judge the network on one image at a time, in eval mode; statistics of a batch must not enter the "
        "logits."
    ),
    source=_TRAMER,
)
HEADLINE = Alarm(
    name="headline",
    claim="the few steps of these checks break images that withstood the whole evaluation",
    tolerance=0.02,
    concern=0.12,
    advice="The evaluation's attacks are too weak: attack with AutoAttack, or with more steps and losses.",
    source=_CARLINI,
)

ALL = (
    BLIND_GRADIENT,
    BLIND_CROSS_ENTROPY,
    BLACK_BOX,
    WHOLE_RANGE,
    MONOTONE,
    STEPS,
    RESTARTS,
    MARGIN_BETTER,
    CROSS_ENTROPY_BETTER,
    RANDOM,
    BATCH,
    HEADLINE,
)
"""In the order of the report. The probability of a false alarm is shared among them."""

NEED_GRADIENTS = (
    BLIND_GRADIENT,
    BLIND_CROSS_ENTROPY,
    BLACK_BOX,
    WHOLE_RANGE,
    MONOTONE,
    STEPS,
    RESTARTS,
    MARGIN_BETTER,
    CROSS_ENTROPY_BETTER,
)
"""Those that compare something with what gradients say."""

COMPARISONS = (BLACK_BOX, MARGIN_BETTER, CROSS_ENTROPY_BETTER)
"""Those that compare two attacks on the same images, each of which may be the better one."""
