"""Settings, slack, structure, rounding and memory of certifiers by bounds."""

import weakref
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustcompress.errors import ConfigError, ModelError
from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.certification import certify
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.certifiers.interval import Interval

KINDS = ("interval", "crown_ibp", "crown", "best")


def _certifier(kind: str, **settings: object) -> BoundCertifier:
    found = Certifier.find({"kind": kind, "radii": ["1/255", 0.01, 0.03, 0.1], **settings})
    assert isinstance(found, BoundCertifier)
    return found


def _network(seed: int = 0, *, inside: nn.Module | None = None) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), inside or nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5)).eval()


def _batch(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 5


def _run(certifier: Certifier, network: nn.Module, count: int = 24) -> tuple[Certificate, ...]:
    return certify(network, [_batch(count)], certifier=certifier)


def _one_pixel(weight: float, bias: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return logits 0 and ``weight * x + bias``."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).to(dtype)
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([[0.0], [weight]]))
        model.get_parameter("1.bias").copy_(torch.tensor([0.0, bias]))
    return model


# --- Settings ---


@pytest.mark.parametrize("radii", [[0.2, 0.1], [0.1, 0.1], [0], [-0.1], ["inf"], [float("nan")]])
def test_radii_that_do_not_ascend_from_above_zero_are_refused(radii: list[object]) -> None:
    with pytest.raises(ValidationError, match="radii must be finite, above 0 and ascending, each once"):
        Interval.model_validate({"radii": radii})


@pytest.mark.parametrize(
    "wrong", [{"radii": []}, {"slack": -1}, {"batch_size": 0}, {"memory_mib": 0}, {"dtype": "float16"}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Interval.model_validate({"radii": [0.1], **wrong})


def test_radii_may_be_fractions_and_are_the_usual_ones() -> None:
    certifier = _certifier("interval", radii=["2/255", 0.1])
    assert certifier.usual_radii == (2 / 255, 0.1)
    assert str(_certifier("crown_ibp")) == "crown-ibp"


# --- The largest of the radii ---


def test_bisection_finds_every_radius_of_the_list() -> None:
    radii = [0.05 * number for number in range(1, 9)]
    edges = torch.arange(0, 9, dtype=torch.float64) * 0.05 + 0.025
    images, labels = (edges + 0.1).clamp(0, 1).reshape(-1, 1, 1, 1), torch.ones(9, dtype=torch.int64)
    # Class 1 where x > 0.1: the distance is known.
    found = certify(_one_pixel(1, -0.1), [(images, labels)], certifier=Interval(radii=tuple(radii), slack=0))
    reachable = [max([0.0, *(radius for radius in radii if radius < edge)]) for edge in edges.tolist()]
    assert [item.radius for item in found] == reachable
    assert reachable == [0.0, *radii]


def test_boxes_end_where_pixels_end() -> None:
    # Class 1 where x > -0.05 or, of the other network, x < 1.05: no image is ever of class 0.
    images, labels = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1), torch.tensor([1, 1, 1])
    for model in (_one_pixel(1, 0.05, torch.float32), _one_pixel(-1, 1.05, torch.float32)):
        found = certify(model, [(images, labels)], certifier=Interval(radii=(0.1, 1.0)))
        assert [item.radius for item in found] == [1.0, 1.0, 1.0]


def test_the_box_holds_what_float32_makes_of_its_ends() -> None:
    # An attack in float32 may put the pixel at float32(x + eps), a little beyond x + eps.
    eps = 0.1
    pixels = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.05
    rounded, exact = (pixels + eps).double(), pixels.double() + eps
    chosen = int((rounded - exact).argmax())
    assert rounded[chosen] > exact[chosen]
    edge = float(rounded[chosen] + exact[chosen]) / 2
    images, labels = pixels[chosen].reshape(1, 1, 1, 1), torch.tensor([1])
    model, certifier = _one_pixel(-1, edge), Interval(radii=(eps,), slack=0)
    (in_double,) = certify(model, [(images.double(), labels)], certifier=certifier)
    assert in_double.radius == eps

    def predictor(images: Tensor) -> Tensor:
        return torch.tensor(model(images.double()).tolist())

    (certificate,) = certify(predictor, [(images, labels)], certifier=Interval(radii=(eps,)), structure=model)
    assert certificate.predicted is None


# --- Slack ---


def test_a_margin_must_exceed_the_slack_in_units_of_the_largest_logit() -> None:
    images, labels = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([1])
    # The logit is 100 and at least 90 within 0.1; a slack of 0.9 asks for 90.
    for slack, radius in ((0.899, 0.1), (0.901, 0.0)):
        model = _one_pixel(100, 50)
        (found,) = certify(model, [(images, labels)], certifier=Interval(radii=(0.1,), slack=slack))
        assert found.radius == radius
    # A logit of 0.05, and 0.04 within 0.1: below 1 the slack is absolute.
    for slack, radius in ((0.039, 0.1), (0.041, 0.0)):
        model = _one_pixel(0.1, 0)
        (found,) = certify(model, [(images, labels)], certifier=Interval(radii=(0.1,), slack=slack))
        assert found.radius == radius


def test_the_slack_covers_what_float32_does_to_a_network_many_times_over() -> None:
    images, _ = _batch(200)
    for seed in range(5):
        network = _network(seed)
        with torch.no_grad():
            rounded, exact = network(images).double(), network.double()(images.double())
        relative = (rounded - exact).abs().amax(1) / exact.abs().amax(1).clamp_min(1)
        assert float(relative.max()) < Interval(radii=(0.1,)).slack / 20


# --- Structure ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_without_structure_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} needs the network's operations.*Pass structure="):
        certify(lambda images: images.flatten(1), [_batch()], certifier=_certifier(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_without_bounds_is_named(kind: str) -> None:
    with pytest.raises(ModelError, match=r"bounds cannot pass layer '1' \(Tanh\): no bounds are known"):
        _run(_certifier(kind), _network(inside=nn.Tanh()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_is_certified_by_the_structure_that_comes_with_it(kind: str) -> None:
    network, certifier = _network(), _certifier(kind)

    def predictor(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits

    found = certify(predictor, [_batch()], certifier=certifier, structure=network)
    assert found == _run(certifier, network)


def test_the_structure_of_another_network_is_refused() -> None:
    network, other = _network(), _network()
    with torch.no_grad():
        other.get_parameter("5.bias")[2] += 0.01

    with pytest.raises(ModelError, match="image 0: the predictor and its structure, computed in float64"):
        certify(network, [_batch()], certifier=_certifier("interval"), structure=other)
    # Who says that rounding may be as large gets it.
    certify(network, [_batch()], certifier=_certifier("interval", slack=0.05), structure=other)
    narrow = nn.Sequential(*list(network)[:-1], nn.Linear(12, 4))
    with pytest.raises(ModelError, match="gives 5 classes and its structure 4"):
        certify(network, [_batch()], certifier=_certifier("interval"), structure=narrow)


def test_an_addition_to_all_logits_is_no_difference() -> None:
    network = _network()

    def shifted(images: Tensor) -> Tensor:
        logits: Tensor = network(images) + 1
        return logits

    found = certify(shifted, [_batch()], certifier=_certifier("crown_ibp"), structure=network)
    assert found == _run(_certifier("crown_ibp"), network)


def test_modules_are_judged_in_eval_mode_and_put_back() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5)).train()
    _run(_certifier("best"), network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert int(network.get_buffer("1.num_batches_tracked")) == 0


def test_logits_that_are_no_numbers_are_refused() -> None:
    network = _network()
    with torch.no_grad():
        network.get_parameter("5.bias")[1] = torch.nan
    with pytest.raises(ModelError, match="images 0 to 23: expected finite logits"):
        _run(_certifier("interval"), network)


# --- Many images ---


def test_shares_put_together_are_what_one_process_finds() -> None:
    network, certifier = _network(), _certifier("best", batch_size=5)
    whole = _run(certifier, network)
    parts = [
        certificate
        for share in range(3)
        for certificate in certify(network, [_batch()], certifier=certifier, share=(share, 3))
    ]
    assert sorted(parts, key=lambda item: item.index) == list(whole)
    assert [item.index for item in whole] == list(range(24))


def test_only_what_is_not_finished_is_certified() -> None:
    network, certifier = _network(), _certifier("crown_ibp", batch_size=4)
    whole, new = _run(certifier, network), list[Certificate]()
    kept = [item for item in whole if item.index % 3 or item.index > 15]
    found = certify(network, [_batch()], certifier=certifier, finished=kept, on_certificate=new.append)
    assert found == whole
    assert new == [item for item in whole if item not in kept]


def test_images_of_several_sizes_are_certified_in_turn() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    small, large = torch.rand(3, 1, 5, 5), torch.rand(2, 1, 7, 7)
    labels = torch.tensor([0, 1, 2])
    batches = [(small, labels), (large, labels[:2]), (small, labels)]
    found = certify(network, batches, certifier=_certifier("crown_ibp"))
    assert [item.index for item in found] == list(range(8))
    assert [item.radius for item in found[:3]] == [item.radius for item in found[5:]]


# --- Speed ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 7}, {"memory_mib": 1}])
def test_settings_of_speed_change_no_certificate(kind: str, settings: dict[str, object]) -> None:
    wide = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *list(_network())[2:])
    wide[3] = nn.Linear(16 * 64, 12)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in (wide[0], wide[3]):
            layer.reset_parameters()  # type: ignore[operator]  # convolution and linear layer both have it
    count = 4 if kind in ("crown", "best") else 24
    expected = _run(_certifier(kind), wide, count)
    assert len({item.radius for item in expected}) > 1 or kind == "interval"
    assert _run(_certifier(kind, **settings), wide, count) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_in_float32_agree_where_the_slack_is_wider_than_their_rounding(kind: str) -> None:
    expected = _run(_certifier(kind), _network())
    assert any(item.radius > 0 for item in expected)
    assert _run(_certifier(kind, dtype="float32"), _network()) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_certifies_as_the_cpu_does(kind: str) -> None:
    network, certifier = _network(), _certifier(kind)
    assert certify(network, [_batch()], certifier=certifier, device="cuda") == _run(certifier, network)


class _Peak(TorchDispatchMode):
    """The largest sum of bytes that tensors made inside took at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.now = self.largest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, tuple | list) else [made]:
            if isinstance(item, Tensor):
                self._count(item.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._seen or size == 0:
            return
        self._seen.add(key)
        self.now += size
        self.largest = max(self.largest, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_asked_for_holds_what_is_computed(kind: str) -> None:
    peaks: dict[int, float] = {}
    network = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2))
    network.extend([nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)]).eval()
    for mib in (4, 16, 128):
        certifier = _certifier(kind, memory_mib=mib, radii=[0.01], slack=1, batch_size=256)
        with _Peak() as peak:
            _run(certifier, network, 8 if kind in ("crown", "best") else 100)
        peaks[mib] = peak.largest / 2**20
    assert peaks[4] < 5
    assert peaks[16] < 17
    assert peaks[16] < peaks[128]
    # Where the bounds take more than the network's own forward, the memory is used.
    assert 2 * peaks[4] < peaks[16] or kind == "interval"
