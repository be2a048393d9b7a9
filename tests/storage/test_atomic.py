import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from robustcompress.errors import StorageError
from robustcompress.storage import atomic
from robustcompress.storage.atomic import (
    atomic_folder,
    read_bytes,
    recover,
    remove_leftovers,
    settled,
    write_bytes,
)
from robustcompress.storage.lock import held


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abcdef").cast("H"), b"x" * 3_000_000]
)
def test_a_written_file_holds_the_data_and_nothing_lies_beside_it(
    tmp_path: Path, data: bytes | bytearray | memoryview
) -> None:
    write_bytes(tmp_path / "a" / "b" / "file", data)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == bytes(data)
    assert names(tmp_path / "a" / "b") == ["file"]


def test_an_old_file_is_replaced_even_if_it_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o644), (0o077, 0o600)])
def test_files_are_readable_as_the_umask_allows(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"x")
        with atomic_folder(tmp_path / "folder") as fresh:
            (fresh / "inner").write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(
            StorageError, match=r"cannot write .*file: No space left on device\. Free some space"
        ):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_write_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_bytes(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))
    write_bytes(tmp_path / "file", [b"", b"abc", memoryview(bytearray(20)), b"0123456789"])
    assert (tmp_path / "file").read_bytes() == b"abc" + bytes(20) + b"0123456789"


def test_leftovers_of_any_file_are_removed_but_not_those_in_the_making(tmp_path: Path) -> None:
    for name in (".a.tmp-0123abcd", ".b.c.tmp-0123abcd", ".a.tmp-0123", "b.tmp-0123abcd", ".d.tmp-0123abcd"):
        (tmp_path / name).write_bytes(b"x")
    with held(tmp_path / ".d.tmp-0123abcd"):
        remove_leftovers(tmp_path)
    assert names(tmp_path) == [".a.tmp-0123", ".d.tmp-0123abcd", "b.tmp-0123abcd"]
    with pytest.raises(StorageError, match=r"cannot clean .*nowhere: No such file"):
        remove_leftovers(tmp_path / "nowhere")


def test_a_limit_on_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    with atomic_folder(tmp_path / "folder") as fresh:
        (fresh / "inner").write_bytes(b"old")
    script = """
import resource, signal, sys
from pathlib import Path
from robustcompress.errors import StorageError
from robustcompress.storage.atomic import atomic_folder, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
here = Path(sys.argv[1])
try:
    write_bytes(here / "file", bytes(300_000))
except StorageError as error:
    print(error)
try:
    with atomic_folder(here / "folder") as fresh:
        (fresh / "inner").write_bytes(bytes(300_000))
except StorageError as error:
    print(error)
"""
    lines = run(script, tmp_path).stdout.splitlines()
    assert len(lines) == 2
    assert all(
        "File too large. Files may not grow that large here: raise the limit" in line for line in lines
    )
    assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "folder" / "inner").read_bytes() == b"old"
    assert names(tmp_path) == ["file", "folder"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("parent is a file", r"cannot write .*File exists.*choose another folder"),
        ("target is a folder", r"cannot write .*Is a directory.*choose another name"),
        ("name too long", r"cannot write .*File name too long.*Choose a shorter name"),
        ("grandparent is a file", r"cannot write .*Not a directory.*A part of this path is a file"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_with_advice(
    tmp_path: Path, prepare: str, message: str
) -> None:
    (tmp_path / "file").write_bytes(b"keep")
    (tmp_path / "folder").mkdir()
    target = {
        "parent is a file": tmp_path / "file" / "x",
        "target is a folder": tmp_path / "folder",
        "name too long": tmp_path / ("n" * 250),
        "grandparent is a file": tmp_path / "file" / "x" / "y",
    }[prepare]
    with pytest.raises(StorageError, match=message):
        write_bytes(target, b"x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_with_advice(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"Permission denied\. Choose a folder that you may write to"):
            write_bytes(tmp_path / "file", b"x")
        with (
            pytest.raises(StorageError, match=r"Permission denied\. Choose a folder that you may write to"),
            atomic_folder(tmp_path / "folder"),
        ):
            pass
    finally:
        tmp_path.chmod(0o755)


def test_a_refused_permission_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"Permission denied\. Choose a folder that you may write to"):
        write_bytes(tmp_path / "new" / "file", b"x")


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".file.tmp-0123abcd", tmp_path / ".file.tmp-4567abcd"
    others = [tmp_path / ".file.tmp-xyz", tmp_path / ".fileX.tmp-0123abcd", tmp_path / "file.tmp-0123abcd"]
    for path in (dead, alive, *others):
        path.write_bytes(b"half")
    with held(alive):
        write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == sorted(["file", alive.name, *(path.name for path in others)])


def test_a_file_is_read_up_to_the_limit_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_bytes(tmp_path / "file", max_bytes=3) == b"abc"
    with pytest.raises(StorageError, match="expected at most 2 bytes; the file has 3"):
        read_bytes(tmp_path / "file", max_bytes=2)


# ---- folders -----------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as fresh:
        (fresh / "one").write_text(text)
        (fresh / "deep").mkdir()
        (fresh / "deep" / "two").write_text(text)


def content(folder: Path) -> str:
    """The text of a folder made by ``fill``; fails if it is not whole."""
    one, two = (folder / "one").read_text(), (folder / "deep" / "two").read_text()
    assert one == two
    assert names(folder) == ["deep", "one"]
    return one


def test_a_new_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    fill(folder, "old")
    with atomic_folder(folder) as fresh:
        (fresh / "only").write_text("new")
        assert content(folder) == "old"
    assert names(folder) == ["only"]
    assert names(tmp_path / "a") == ["b"]


def test_an_error_while_building_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "f") as fresh:
        raise KeyError((fresh / "one").write_text("new"))
    with (
        pytest.raises(StorageError, match=r"cannot write .*/f: No space left"),
        atomic_folder(tmp_path / "f"),
    ):
        full_disk()
    assert content(tmp_path / "f") == "old"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_a_full_disk_leaves_the_old_folder_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fill(tmp_path / "f", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(
            StorageError, match=r"cannot write .*/f: No space left on device\. Free some space"
        ):
            fill(tmp_path / "f", "new")
    assert content(tmp_path / "f") == "old"
    assert names(tmp_path) == ["f"]


def test_a_swap_that_fails_half_way_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "f", "old")
    real = os.rename

    def fail_to_put_in(source: Path, target: Path) -> None:
        if Path(source).name == "folder":
            full_disk()
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail_to_put_in)
        with pytest.raises(StorageError, match="No space left"):
            fill(tmp_path / "f", "new")
    assert content(tmp_path / "f") == "old"
    assert names(tmp_path) == ["f"]


def test_a_file_in_the_place_of_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("keep")
    with pytest.raises(
        StorageError, match=r"cannot write the folder .*/f: a file of that name is in the way"
    ):
        fill(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "keep"
    assert names(tmp_path) == ["f"]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == "new"


def test_folders_can_be_built_inside_folders_being_built(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as fresh:
        fill(fresh / "inner", "deep")
        write_bytes(fresh / "file", b"x")
    assert content(tmp_path / "f" / "inner") == "deep"
    assert names(tmp_path / "f") == ["file", "inner"]


def test_recovery_puts_the_old_folder_back_when_the_new_one_never_came(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    (tmp_path / "f").rename(tmp_path / ".f.old")
    recover(tmp_path / "f")
    assert content(tmp_path / "f") == "old"
    assert names(tmp_path) == ["f"]


def test_recovery_drops_the_old_folder_when_the_new_one_is_in(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    (tmp_path / "f").rename(tmp_path / ".f.old")
    fill_without_recovery = tmp_path / "g"
    fill(fill_without_recovery, "new")
    fill_without_recovery.rename(tmp_path / "f")
    with settled(tmp_path / "f") as folder:
        assert content(folder) == "new"
    assert names(tmp_path) == ["f"]


def test_recovery_removes_what_dead_writers_left_and_spares_the_living(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    for name in (".f.new-00000000", ".f.new-11111111", ".g.new-00000000"):
        fill(tmp_path / name / "folder", "half")
    with held(tmp_path / ".f.new-11111111"):
        recover(tmp_path / "f")
    assert names(tmp_path) == [".f.new-11111111", ".g.new-00000000", "f"]
    recover(tmp_path / "f")
    assert names(tmp_path) == [".g.new-00000000", "f"]


def test_recovery_of_what_does_not_exist_is_harmless(tmp_path: Path) -> None:
    recover(tmp_path / "f")
    recover(tmp_path / "none" / "f")
    assert names(tmp_path) == []


def test_an_old_folder_that_cannot_be_put_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / ".f.old", "old")
    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(StorageError, match=r"cannot recover .*/f: No space left"):
        recover(tmp_path / "f")


def test_a_reader_never_sees_a_swap_happen(tmp_path: Path) -> None:
    fill(tmp_path / "f", "0")
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            with settled(tmp_path / "f") as folder:
                seen.add(content(folder))

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 30):
        fill(tmp_path / "f", str(version))
    stop.set()
    reader.join()
    assert len(seen) > 1


def test_two_writers_take_turns(tmp_path: Path) -> None:
    def write(text: str) -> None:
        for _ in range(15):
            fill(tmp_path / "f", text)

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert content(tmp_path / "f") in "ab"
    assert names(tmp_path) == ["f"]


# ---- killed at every step ----------------------------------------------------------------------------------

_KILLED_AT_EVERY_STEP = """
import os, sys
from pathlib import Path
from robustcompress.storage.atomic import atomic_folder, write_bytes
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
what, path, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
count = 0
def die_at_the_step(event, arguments):
    global count
    if event in STEPS:
        count += 1
        if count == step:
            os._exit(137)
pid = os.fork()
if pid == 0:
    sys.addaudithook(die_at_the_step)
    if what == "folder":
        with atomic_folder(path) as fresh:
            (fresh / "one").write_text("new")
            (fresh / "deep").mkdir()
            (fresh / "deep" / "two").write_text("new")
    else:
        write_bytes(path, b"new")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    folder, results = tmp_path / "f", list[str]()
    for step in range(1, 200):
        write = fill if what == "folder" else lambda path, text: write_bytes(path, text.encode())
        write(folder, "old")
        code = run(_KILLED_AT_EVERY_STEP, what, folder, step).returncode
        if what == "folder":
            recover(folder)
            results.append(content(folder))
        else:
            results.append(folder.read_text())
            write_bytes(folder, b"later")
        assert names(tmp_path) == ["f"], f"leftovers after step {step}"
        if code == 0:
            break
        assert code == 137
    assert results == sorted(results, reverse=True)  # old, old, ..., new, new
    assert {"old", "new"} == set(results)
    assert len(results) > (10 if what == "folder" else 3)


def test_the_names_of_leftovers_are_those_that_the_module_describes() -> None:
    assert atomic.__doc__ is not None
    assert all(text in atomic.__doc__ for text in (".tmp-", ".new-", ".old"))


# ---- file systems with less than one would like -----------------------------------------------------------


def refuse_folder(folder: Path, call: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``os.open`` or ``os.fsync`` refuse ``folder``, and only that."""
    real = getattr(os, call)

    def refuse(what: Path | int, *rest: int, **named: int) -> object:
        if not named and os.path.exists(what) and os.path.samestat(os.stat(what), folder.stat()):
            raise OSError(code, os.strerror(code))
        return real(what, *rest, **named)

    monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize(
    ("call", "code"), [("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP), ("open", errno.EACCES)]
)
def test_folders_that_cannot_be_synced_or_opened_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    with monkeypatch.context() as patch:
        refuse_folder(tmp_path, call, code, patch)
        write_bytes(tmp_path / "file", b"x")
        with atomic_folder(tmp_path / "f") as fresh:
            (fresh / "one").write_text("x")
    assert names(tmp_path) == ["f", "file"]


def test_a_disk_error_while_syncing_a_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folder(tmp_path, "fsync", errno.EIO, monkeypatch)
    with pytest.raises(StorageError, match=r"cannot write .*file: Input/output error\. Check the disk"):
        write_bytes(tmp_path / "file", b"x")


def test_a_folder_that_cannot_be_listed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        write_bytes(tmp_path / "file", b"x")
    assert names(tmp_path) == ["file"]
