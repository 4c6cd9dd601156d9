"""Whatever happens to a preparation, the earlier data are there or the new ones: whole, and never a mixture."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_sets import encode, made, noise, pets, prepare_made, tree

from pipelines.preparation import replacement, shards
from pipelines.preparation.replacement import replacing


def start(output: Path, added: int) -> int:
    """Prepare in a process of its own, the first of a group."""
    if process := os.fork():
        return process
    os.setsid()
    try:
        prepare_made(
            made(pets(150) | {f"dog/new {index}.png": encode(noise(index + 5000)) for index in range(added)}), output
        )
    finally:
        os._exit(0)


def test_killed_at_any_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "USUAL_COST", shards.USUAL_BYTES * 20)
    output, states = tmp_path / "data/prepared", {}
    for added in (100, 0):
        begin = time.monotonic()
        os.waitpid(start(output, added), 0)
        duration, states[added] = time.monotonic() - begin, tree(output)
    assert states[0] != states[100]
    has_ended, now = [], 0
    for moment in np.linspace(0.05, 1.1, 12):
        wanted = 100 - now
        process = start(output, wanted)
        time.sleep(duration * moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found = tree(output)
        now = next(added for added, state in states.items() if state == found)
        has_ended.append(now == wanted)
    assert not all(has_ended)
    os.waitpid(start(output, 100), 0)
    assert tree(output) == states[100]
    assert sorted(path.name for path in output.parent.iterdir()) == ["prepared", "prepared.lock"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    def count():
        found = 0
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
                found += fields[2:3] == [str(process)] and fields[0] != "Z"
        return found

    deadline = time.monotonic() + 30
    process = start(tmp_path / "prepared", 3000)
    while count() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() >= 2
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    while count() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() == 0


def write(output: Path, text: str | None) -> None:
    with replacing(output) as new:
        (new / "train").mkdir()
        (new / "train/file" if text else new).write_text(text or "")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(replacement, "_exchange", lambda *_: False)
    output = tmp_path / "deep/prepared"
    for text in ("one", "two", "three"):
        write(output, text)
        assert tree(output) == {"train/file": text.encode()}
    with pytest.raises(IsADirectoryError):
        write(output, None)
    assert tree(output) == {"train/file": b"three"}
    assert sorted(path.name for path in output.parent.iterdir()) == ["prepared", "prepared.lock"]


def test_folders_are_exchanged_in_one_step(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/file").write_text("a")
    if not replacement._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("neither the system nor the disk can exchange folders")
    assert (tmp_path / "b/file").read_text() == "a" and not (tmp_path / "a/file").exists()
    with pytest.raises(FileNotFoundError, match="none"):
        replacement._exchange(tmp_path / "a", tmp_path / "none")


def test_killed_between_two_renames(tmp_path):
    """As on a system that cannot exchange folders: the next start brings the earlier one back."""
    output = tmp_path / "prepared"
    (tmp_path / "prepared.partial/former").mkdir(parents=True)
    (tmp_path / "prepared.partial/former/file").write_text("earlier")
    (tmp_path / "prepared.partial/new").mkdir()
    with pytest.raises(IsADirectoryError):
        write(output, None)
    assert tree(output) == {"file": b"earlier"}


def test_the_second_of_two_is_refused(tmp_path):
    output = tmp_path / "prepared"
    code = "import sys; from pathlib import Path; from pipelines.preparation.replacement import replacing\n"
    code += "with replacing(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"has it\n"
    with pytest.raises(ValueError, match=r"another process is writing .*prepared: wait until it is done"):
        prepare_made(made(pets()), output)
    with process:
        process.communicate(b"")
    prepare_made(made(pets()), output)


def test_a_link_to_another_disk_is_followed(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "prepared").symlink_to(tmp_path / "large disk/prepared")
    for text in ("one", "two"):
        write(tmp_path / "prepared", text)
    assert (tmp_path / "prepared").is_symlink()
    assert (tmp_path / "large disk/prepared/train/file").read_text() == "two"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB, with room for a few files."""
    (tmp_path / "disk").mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path / "disk")]
        done = subprocess.run(command, capture_output=True, check=False) if os.geteuid() == 0 else None
        if done is None or done.returncode:
            pytest.skip("only root can mount a small disk")
        mounted.append(tmp_path / "disk")
        return tmp_path / "disk"

    mounted: list[Path] = []
    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_too_small_is_said_before_anything_is_written(small_disk):
    output = small_disk("size=2m") / "prepared"
    prepare_made(made(pets()), output)
    before = tree(output)
    more = {f"cat/x{index}.png": encode(noise(index, (300, 300, 3))) for index in range(12)}
    with pytest.raises(
        OSError, match=r"too full: 3\.\d MiB needed, \d\.\d MiB free\. The earlier data are as they were"
    ):
        prepare_made(made(pets() | more), output)
    assert tree(output) == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["prepared", "prepared.lock"]


@pytest.mark.parametrize("inodes", [12, 17, 18, 20])
def test_a_disk_that_becomes_full(small_disk, inodes):
    """It has room, but not for so many files; with fewer, a process fails that writes a shard."""
    output = small_disk(f"size=9m,nr_inodes={inodes}") / "prepared"
    try:
        prepare_made(made(pets()), output)
    except OSError:
        assert tree(output.parent) == {"prepared.lock": b""}
        return
    before = tree(output)
    with pytest.raises(OSError, match=r"is full: 0\.\d MiB needed, \d\.\d MiB free. The earlier data are") as caught:
        prepare_made(made(pets() | {"cat/x.png": encode(noise(100))}), output)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert tree(output) == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["prepared", "prepared.lock"]


def test_a_shard_that_fills_the_disk(small_disk, monkeypatch):
    """Should the estimate be too low, the processes that write are those that fail."""
    output = small_disk("size=2m") / "prepared"
    prepare_made(made(pets()), output)
    before = tree(output)
    disk_usage = replacement.shutil.disk_usage
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: disk_usage(path)._replace(free=2**30)
    )  # as if others wrote meanwhile
    more = {f"cat/x{index}.png": encode(noise(index, (300, 300, 3))) for index in range(12)}
    with pytest.raises(OSError, match=r"the disk of .* is full: 3\.\d MiB needed") as caught:
        prepare_made(made(pets() | more), output)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert tree(output) == before
