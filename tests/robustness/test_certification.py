import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError, DataError
from robustcompress.robustness.certification import CertifiedAccuracy, certified_accuracy, certify
from robustcompress.robustness.certifiers import Certificate
from robustcompress.robustness.certifiers.smoothing import Smoothing

Trained = tuple[nn.Module, Tensor, Tensor]
CERTIFIER = Smoothing(sigma=0.15, n0=20, n=300)


def _batches(trained: Trained, size: int, count: int = 20) -> list[tuple[Tensor, Tensor]]:
    _, images, labels = trained
    return list(zip(images[:count].split(size), labels[:count].split(size), strict=True))


def _certified(trained: Trained, size: int = 20, **changes: object) -> tuple[Certificate, ...]:
    return certify(trained[0], _batches(trained, size), certifier=CERTIFIER, seed=1, **changes)  # type: ignore[arg-type]  # the tests' own


def test_shares_put_together_are_what_one_process_finds(trained: Trained) -> None:
    whole = _certified(trained)
    parts = [item for share in range(3) for item in _certified(trained, share=(share, 3))]
    assert sorted(parts, key=lambda item: item.index) == list(whole)
    assert [item.index for item in _certified(trained, share=(1, 3))] == list(range(1, 20, 3))


def test_the_images_batch_size_and_limit_do_not_matter(trained: Trained) -> None:
    whole = _certified(trained)
    assert _certified(trained, size=3) == whole
    assert _certified(trained, size=3, limit=7) == whole[:7]


def test_a_second_process_goes_on_with_what_is_finished(trained: Trained) -> None:
    whole, new = _certified(trained), list[Certificate]()
    kept = [Certificate.model_validate_json(item.model_dump_json()) for item in whole[:13]]
    assert _certified(trained, finished=kept, on_certificate=new.append) == whole
    assert tuple(new) == whole[13:]


def test_finished_certificates_of_other_data_are_refused(trained: Trained) -> None:
    other = Certificate(index=2, label=0, predicted=None, radius=0)
    with pytest.raises(DataError, match="image 2 has label 2, but its finished certificate says 0"):
        _certified(trained, finished=[other])


def test_a_module_is_judged_in_eval_mode_and_put_back() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    batch = [(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]))]
    certify(network, batch, certifier=Smoothing(n0=2, n=20), seed=0)
    assert network.training
    assert int(network.get_buffer("1.num_batches_tracked")) == 0


def test_any_function_can_be_certified(trained: Trained) -> None:
    def shifted(images: Tensor) -> Tensor:
        logits: Tensor = trained[0](images) + 1
        return logits

    found = certify(shifted, _batches(trained, 20), certifier=CERTIFIER, seed=1)
    assert found == _certified(trained)


@pytest.mark.parametrize("share", [(3, 3), (-1, 2), (0, 0)])
def test_a_share_that_is_none_is_refused(share: tuple[int, int], trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"share must be \(i, n\) with 0 <= i < n; got"):
        _certified(trained, share=share)


def test_a_limit_of_none_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="limit must be 1 or more"):
        _certified(trained, limit=0)


def test_certified_accuracy_counts_right_classes_within_the_radius() -> None:
    made = [(1, 1, 0.5), (1, 1, 0.2), (0, 1, 0.9), (2, None, 0.0)]
    found = certified_accuracy(
        [
            Certificate(index=index, label=label, predicted=predicted, radius=radius)
            for index, (label, predicted, radius) in enumerate(made)
        ],
        [0, 0.2, 0.3, 0.6],
    )
    assert [item.correct for item in found] == [2, 2, 1, 0]
    assert [item.accuracy for item in found] == [0.5, 0.5, 0.25, 0.0]
    assert all(item.count == 4 and item.interval[0] <= item.accuracy <= item.interval[1] for item in found)


def test_the_interval_is_wilsons() -> None:
    # Brown, Cai & DasGupta's eq. 4 at 8 of 10 and z = 1.959964, by hand.
    low, high = CertifiedAccuracy(radius=0.1, correct=8, count=10).interval
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)


def test_certified_accuracy_falls_with_the_radius_and_is_never_above_the_accuracy_of_the_guesses(
    trained: Trained,
) -> None:
    certificates = _certified(trained)
    found = [item.correct for item in certified_accuracy(certificates, [0, 0.05, 0.1, 0.2, 0.4, 1])]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] == 0
    assert found[0] <= sum(item.counts["guess"] == item.label for item in certificates)


def test_no_certificates_are_refused() -> None:
    with pytest.raises(DataError, match="expected certificates to count; got none"):
        certified_accuracy([], [0.1])


def test_an_image_counts_once() -> None:
    twice = [Certificate(index=0, label=0, predicted=0, radius=1)] * 2
    with pytest.raises(DataError, match="expected one certificate per image"):
        certified_accuracy(twice, [0.1])


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_negative_radius_is_refused(radius: float) -> None:
    with pytest.raises(ConfigError, match="radii must be 0 or more"):
        certified_accuracy([Certificate(index=0, label=0, predicted=0, radius=1)], [radius])
