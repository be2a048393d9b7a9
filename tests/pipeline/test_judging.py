from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robustcompress import ImageSet, Threat, evaluate_data_set
from robustcompress.errors import ConfigError, DataError, ExportError, ModelError, StorageError
from robustcompress.events import Event, Notice, Progress
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.pipeline.attack_store import AttackStore
from robustcompress.report.judgement import Judgement
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.target import Target
from tests.pipeline.conftest import bars

IMAGES = bars(90, 3)
THREAT = Threat(eps=0.1)
WHITE = {"kind": "pgd", "steps": 5}
BLACK = {"kind": "square", "queries": 30}
AREAS = torch.stack([(torch.arange(81) % 9 // 3 == third).float() for third in range(3)]) / 27
"""Rows of a linear network: the mean of each third of an image."""


def _linear(factor: float = 1.0) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(81, 3, bias=False))
    with torch.no_grad():
        next(network.parameters()).copy_(AREAS * factor)
    return network.eval()


def _stands(eps: float) -> int:
    """Return how many images no change of the pixels by ``eps`` breaks: exact for a linear network."""
    (images, labels), *_ = IMAGES.batches(len(IMAGES))
    low, high = (images - eps).clamp_min(0).flatten(1), (images + eps).clamp_max(1).flatten(1)
    rows = AREAS[labels][:, None] - AREAS[None]
    margins = (rows * torch.where(rows > 0, low[:, None], high[:, None])).sum(2)
    return int((margins.scatter(1, labels[:, None], 1.0).amin(1) > 0).sum())


def _file(path: Path, *nodes: onnx.NodeProto, batch: int | str, **constants: np.ndarray) -> Path:
    """Write a file that somebody made by hand; its last node gives ``y`` from ``x``."""
    graph = helper.make_graph(
        list(nodes),
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def _unknown(path: Path) -> Path:
    """Write a linear network behind an operator that no twin is made of."""
    return _file(
        path,
        helper.make_node("Sinh", ["x"], ["bent"], name="odd one"),
        helper.make_node("Flatten", ["bent"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        batch="n",
        w=AREAS.T.contiguous().numpy(),
    )


def _exported(path: Path, network: nn.Module) -> Path:
    Onnx().write(network, path, images=IMAGES.images[:4] / 255, metadata={})
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("exported") / "model.onnx", _linear())


# Half of the images are broken at this radius: the thirds differ by about 160/255 in brightness.
EPS = 0.31


def test_a_file_is_attacked_by_its_own_gradients(exported: Path) -> None:
    events: list[Event] = []
    found = evaluate_data_set(
        exported,
        IMAGES,
        threat={"eps": EPS},
        attacks=[WHITE, BLACK],
        device="cpu",
        seed=4,
        sinks=[events.append],
    )
    white, worst = found.measured("PGD-5x1"), found.robust
    assert white is not None
    assert worst is not None
    assert (white.access, white.correct) == ("white-box", _stands(EPS))  # linear: each step is the best one
    assert 0 < _stands(EPS) < len(IMAGES)
    assert worst.correct <= white.correct
    assert [row.access for row in found.measurements if row.attack.startswith("Square")] == ["black-box"]
    assert {row.subject for row in found.measurements} == {found.subject} == {"model.onnx"}
    assert found.twin is not None
    assert found.twin.largest_difference < 1e-5
    assert (found.no_gradients, found.skipped, found.transfer_from) == ("", (), "")
    assert found.reliability is not None
    assert sum(row.standing for row in found.classes) == worst.correct
    assert [(row.label, row.count) for row in found.classes] == [
        ("left", 30),
        ("middle", 30),
        ("right", 30),
    ]
    assert (found.data, found.images, found.seed) == ("bars", IMAGES.fingerprint(), 4)
    assert Judgement.model_validate_json(found.model_dump_json()) == found
    assert Progress("evaluate", "PGD-5x1", 1, 1, f"{white.correct} of 90 right") in events
    assert not [event for event in events if isinstance(event, Notice)]


def test_a_module_and_its_file_are_judged_alike(exported: Path) -> None:
    network = _linear().train()
    made = [
        evaluate_data_set(
            target, IMAGES, threat=Threat(eps=EPS), attacks=[WHITE], limit=50, device="cpu", alarms=False
        )
        for target in (network, exported, str(exported))
    ]
    # In 8-bit pixels this network's logits tie, and rounding decides.
    rows = [[(row.attack, row.correct, row.count) for row in found.measurements[:2]] for found in made]
    assert rows[0] == rows[1] == rows[2]
    assert network.training
    assert [found.subject for found in made] == ["network", "model.onnx", "model.onnx"]
    assert made[0].reliability is None
    assert made[0].twin is None


def test_a_file_that_is_not_understood_is_attacked_from_outside_and_says_so(tmp_path: Path) -> None:
    events: list[Event] = []
    found = evaluate_data_set(
        _unknown(tmp_path / "odd.onnx"),
        IMAGES,
        threat={"eps": 0.05, "norm": "l2"},
        attacks=[WHITE, BLACK],
        device="cpu",
        sinks=[events.append],
    )
    assert {row.access for row in found.measurements} == {"none", "black-box"}
    assert "'odd one' (Sinh)" in found.no_gradients
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("PGD-5x1 was not run on odd.onnx: ")
    assert found.robust is not None
    assert found.robust.access == "black-box"
    assert found.reliability is not None
    assert found.reliability.status == "undecided"  # most checks need gradients
    assert (found.norm, found.eps) == ("l2", 0.05)
    warned = [event.message for event in events if isinstance(event, Notice)]
    assert any("odd.onnx is attacked without gradients" in message for message in warned)
    assert Judgement.model_validate_json(found.model_dump_json()) == found


def test_images_made_on_a_network_are_scored_on_a_file_that_has_no_gradients(tmp_path: Path) -> None:
    path = _unknown(tmp_path / "odd.onnx")
    found = evaluate_data_set(
        path,
        IMAGES,
        threat={"eps": EPS},
        attacks=[WHITE],
        transfer_from=_linear(),
        device="cpu",
        alarms=False,
    )
    row = found.measured("PGD-5x1", "transfer")
    assert row is not None
    assert {item.subject for item in found.measurements} == {item.subject for item in found.classes}
    assert {item.subject for item in found.measurements} == {"odd.onnx"}
    assert len(found.transfer_from) == 64
    expected = evaluate(
        _linear(),
        IMAGES.batches(90),
        threat=Threat(eps=EPS),
        attacks=[Attack.find(WHITE)],
        seed=0,
        device="cpu",
        files={"odd.onnx": Target(OnnxSession(path), None, found.no_gradients)},
    )
    assert found.measurements == tuple(m for m in expected.measurements if m.subject == "odd.onnx")


def test_a_file_with_gradients_is_attacked_by_them_and_by_transfer(exported: Path) -> None:
    found = evaluate_data_set(
        exported,
        IMAGES,
        threat={"eps": EPS},
        attacks=[WHITE],
        transfer_from=_linear(2.0),
        device="cpu",
        alarms=False,
    )
    made = {row.access: row.correct for row in found.measurements if row.attack == "PGD-5x1"}
    assert made == {"white-box": _stands(EPS), "transfer": _stands(EPS)}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_fixed_batch_takes_any_number_of_images(batch: int, tmp_path: Path) -> None:
    path = _file(
        tmp_path / "fixed.onnx",
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        batch=batch,
        w=AREAS.T.contiguous().numpy(),
        shape=np.array([batch, 81]),
    )
    attacks = [WHITE, {**BLACK, "queries": 2}, {"kind": "apgd_t", "steps": 2}]
    found = evaluate_data_set(
        path, IMAGES, threat={"eps": EPS}, attacks=attacks, device="cpu", limit=30, seed=4
    )
    free = evaluate_data_set(
        _linear(), IMAGES, threat={"eps": EPS}, attacks=attacks, device="cpu", limit=30, seed=4
    )
    assert [(row.attack, row.correct) for row in found.measurements] == [
        (row.attack, row.correct) for row in free.measurements
    ]
    assert found.twin is not None
    assert found.twin.images == 16


def test_a_file_of_fixed_batch_that_is_not_understood_is_attacked_from_outside(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "fixed.onnx",
        helper.make_node("Sinh", ["x"], ["bent"]),
        helper.make_node("Flatten", ["bent"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        batch=4,
        w=AREAS.T.contiguous().numpy(),
    )
    found = evaluate_data_set(
        path, IMAGES, threat={"eps": 0.6}, attacks=[BLACK], device="cpu", limit=30, alarms=False
    )
    assert "Sinh" in found.no_gradients
    assert found.robust is not None
    assert found.robust.correct < found.measurements[0].correct == 30


def test_a_robust_accuracy_that_alarms_do_not_believe_is_withheld(tmp_path: Path) -> None:
    found = evaluate_data_set(
        _exported(tmp_path / "saturated.onnx", _linear(300.0)),
        IMAGES,
        threat={"eps": EPS},
        attacks=[WHITE],  # its cross-entropy vanishes, and with it what the attack follows
        device="cpu",
    )
    assert found.measurements[-1].accuracy == 1.0
    assert _stands(EPS) < len(IMAGES)
    assert found.unreliable
    assert found.robust is None
    assert '"robust":null' in found.model_dump_json()
    assert Judgement.model_validate_json(found.model_dump_json()) == found


def test_what_an_ensemble_made_is_kept_until_the_evaluation_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    network, keep = _linear(), tmp_path / "keep"

    def judge(*stop_at: str) -> Judgement:
        seen: list[str] = []

        def stop(event: Event) -> None:
            if isinstance(event, Progress):
                seen.append(event.task)
                if event.task.startswith(stop_at or ("none",)):
                    raise StoppedError

        return evaluate_data_set(
            network,
            IMAGES,
            threat={"eps": EPS},
            attacks=["autoattack"],
            limit=10,
            device="cpu",
            alarms=False,
            keep=keep,
            sinks=[stop],
        )

    with pytest.raises(StoppedError):
        judge("APGD-DLR", "FAB", "APGD-T")
    kept = list(keep.rglob("*.safetensors"))
    assert kept
    asked: list[bool] = []
    get = AttackStore.get

    def noted(store: AttackStore, key: str) -> Tensor | None:
        found = get(store, key)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(AttackStore, "get", noted)
    resumed = judge()
    assert sum(asked) == len(kept)
    assert not keep.exists()
    assert resumed == judge()


def test_a_predictor_is_told_from_others_by_a_fingerprint_only(exported: Path, tmp_path: Path) -> None:
    session = OnnxSession(exported)
    with pytest.raises(ConfigError, match="keep needs a fingerprint that tells this predictor from others"):
        evaluate_data_set(session, IMAGES, threat=THREAT, attacks=[BLACK], device="cpu", keep=tmp_path)
    found = evaluate_data_set(
        Target(session, _linear()),
        IMAGES,
        threat=THREAT,
        attacks=[WHITE],
        device="cpu",
        keep=tmp_path,
        fingerprint="mine",
        subject="session",
        limit=20,
    )
    assert (found.subject, found.fingerprint) == ("session", "mine")
    assert found.measurements[1].access == "white-box"


def test_wrong_settings_are_refused(exported: Path) -> None:
    def judge(data: object = IMAGES, threat: object = THREAT, attacks: object = (WHITE,)) -> None:
        evaluate_data_set(exported, data, threat=threat, attacks=attacks, device="cpu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # refused

    with pytest.raises(ConfigError, match=r"attack\.steps: .*greater than or equal to 1; got 0"):
        judge(attacks=[{"kind": "pgd", "steps": 0}])
    with pytest.raises(ConfigError, match=r"attack: .*Did you mean 'autoattack'"):
        judge(attacks=["autoatack"])
    with pytest.raises(ConfigError, match=r"threat\.eps: expected a number such as 0\.1 or 8/255; got '8/x'"):
        judge(threat={"eps": "8/x"})
    with pytest.raises(ConfigError, match=r"data: .*Did you mean 'cifar10'"):
        judge(data="cifar1")
    with pytest.raises(StorageError, match=r"cannot read gone\.onnx: No such file"):
        evaluate_data_set("gone.onnx", IMAGES, threat=THREAT, attacks=[WHITE], device="cpu")


def test_images_of_another_shape_are_refused(exported: Path) -> None:
    wide = ImageSet(torch.zeros(3, 1, 9, 12, dtype=torch.uint8), torch.arange(3), IMAGES.classes, "wide")
    with pytest.raises(DataError, match=r"model\.onnx takes images \[any, 1, 9, 9\]; got \[1, 1, 9, 12\]"):
        evaluate_data_set(exported, wide, threat=THREAT, attacks=[WHITE], device="cpu")
    with pytest.raises(
        ModelError, match=r"cannot be called with images \[1, 1, 9, 12\].*for which it was made"
    ):
        evaluate_data_set(_linear(), wide, threat=THREAT, attacks=[WHITE], device="cpu")


def test_attacks_by_gradients_alone_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Add an attack that needs none: square"):
        evaluate_data_set(
            _unknown(tmp_path / "odd.onnx"), IMAGES, threat=THREAT, attacks=[WHITE], device="cpu"
        )


def test_a_file_that_no_runtime_loads_is_no_reason_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ExportError, match="not an ONNX model"):
        evaluate_data_set(path, IMAGES, threat=THREAT, attacks=[BLACK], device="cpu")
