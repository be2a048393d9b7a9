import builtins
import io
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from robustcompress.errors import MissingExtraError, StorageError
from robustcompress.events import (
    EpochDone,
    Event,
    Events,
    Notice,
    Progress,
    RunDone,
    RunStarted,
    StageDone,
    StageStarted,
    StepDone,
)
from robustcompress.sinks.console import ConsoleSink
from robustcompress.sinks.jsonl import JsonlSink
from robustcompress.sinks.tensorboard import TensorboardSink

RUN: list[Event] = [
    RunStarted("runs/a", ("pretrain", "evaluate"), "cpu"),
    StageStarted("pretrain", 2, 4, resumed_at=1),
    *(StepDone("pretrain", step // 3 + 1, step, 2.0 / step, 0.1) for step in range(2, 5)),
    EpochDone(
        "pretrain",
        1,
        2,
        {"loss": 1.5, "lr": 0.1, "validation_clean": 0.75, "validation_robust": 0.5},
        True,
        3.0,
    ),
    EpochDone("pretrain", 2, 2, {"loss": 1.25, "lr": 0.1}, False, 3.0),
    StageDone("pretrain", 6.0, "runs/a/stages/pretrain"),
    StageStarted("evaluate", 0, 0),
    Progress("evaluate", "PGD-20x1", 1, 2),
    Progress("evaluate", "PGD-20x1", 2, 2),
    Notice("warning", "look here"),
    StageDone("evaluate", 2.0, "runs/a/report", reused=True),
    RunDone("runs/a", 8.0),
]


def test_jsonl_keeps_every_event_in_order_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    for half in (RUN[:6], RUN[6:]):  # a resumed run appends
        with JsonlSink(path) as sink:
            events = Events([sink])
            for event in half:
                events(event)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.pop("event") for row in rows] == [type(event).__name__ for event in RUN]
    times = [datetime.fromisoformat(row.pop("time")) for row in rows]
    assert times == sorted(times)
    assert rows == [
        {key: value for key, value in json.loads(json.dumps(event.as_dict())).items() if key != "event"}
        for event in RUN
    ]


def test_jsonl_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"events\.jsonl: cannot be written"):
        JsonlSink(tmp_path / "file" / "events.jsonl")


def test_jsonl_on_a_full_disk_is_one_clear_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with (
        JsonlSink(full) as sink,
        pytest.raises(StorageError, match=r"/dev/full: cannot be written: No space left"),
    ):
        sink(RUN[0])


def test_tensorboard_reads_back_what_was_sent(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorboardSink(tmp_path)
    for event in RUN:
        sink(event)
    sink.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(row.step, row.value) for row in read.Scalars("pretrain/step_loss")] == [
        (step, pytest.approx(2.0 / step)) for step in range(2, 5)
    ]
    assert [row.value for row in read.Scalars("pretrain/epoch_validation_robust")] == [0.5]
    assert [row.value for row in read.Scalars("pretrain/epoch_loss")] == [1.5, 1.25]


def test_without_tensorboard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'robustcompress\[tensorboard\]'"):
        TensorboardSink(tmp_path)


def test_without_a_terminal_each_epoch_is_one_line() -> None:
    stream = io.StringIO()
    with ConsoleSink(stream, terminal=False, width=100) as sink:
        for event in RUN:
            sink(event)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run runs/a on cpu: pretrain, evaluate"
    assert "pretrain: goes on at step 2" in lines
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == 2
    assert re.fullmatch(
        r"pretrain  epoch 1/2  loss 1\.500  clean 75\.0%  robust 50\.0%  \d+ s left", epochs[0]
    )
    assert "warning: look here" in lines
    assert any(
        re.fullmatch(r"pretrain +6\.0 s  validation: clean 75\.0%  robust 50\.0%", line) for line in lines
    )
    assert any("finished earlier, taken from runs/a/report" in line for line in lines)


def test_on_a_terminal_a_bar_shows_stage_epoch_loss_and_accuracy() -> None:
    stream = io.StringIO()
    with ConsoleSink(stream, terminal=True, width=120) as sink:
        for event in RUN[:7]:
            sink(event)
        sink._bars.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
        assert "4/4" in shown
        assert "epoch 2/2" in shown
        assert "loss 0." in shown
        assert "clean 75.0%  robust 50.0%" in shown
        for event in RUN[7:]:
            sink(event)
        assert sink._tasks == {}


def test_events_reach_every_sink_until_it_is_removed() -> None:
    first: list[Event] = []
    second: list[Event] = []
    events = Events([first.append])
    events.add(second.append)
    events.info("both")
    events.remove(second.append)
    events.warning("one")
    assert [type(event).__name__ for event in first] == ["Notice", "Notice"]
    assert first[0].as_dict() == {"event": "Notice", "level": "info", "message": "both"}
    assert len(second) == 1
