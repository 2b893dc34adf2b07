"""Row 31: the control file damaged in every way. The last good epoch goes on serving, and it is said what is wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_hub import Hub
from llm_hub.control import Document, decode
from llm_hub.control_file import FileBook
from llm_hub.errors import ControlFileDamaged
from llm_hub.presence import live
from llm_hub.selection import Target
from llm_hub.testing import FakeOllama, FakeVLLM

MODEL = "hub-test-vlm"


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "control.json"


@pytest.fixture
def environ(ollama: FakeOllama, vllm: FakeVLLM, file: Path) -> dict[str, str]:
    return {
        "LLM_HUB_STATE": str(file),
        "LLM_HUB_CONFIG": "/dev/null",
        "LLM_PROVIDER": "ollama",
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": MODEL,
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": MODEL,
    }


@pytest.fixture
def hub(environ: dict[str, str]) -> Iterator[Hub]:
    """On epoch 2, which is a switch to vllm."""
    with Hub.from_env(environ) as made:
        made.use(text="vllm")
        assert serves(made) == ("vllm", 2)
        yield made


def serves(hub: Hub) -> tuple[str, int]:
    served = hub.text().chat("ping").served_by
    assert served is not None
    return served.backend, served.epoch


def soon(true: Callable[[], object], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def half_written(file: Path) -> None:
    """By something that does not write in one step: new bytes over the first part of the old ones."""
    with file.open("r+b") as target:
        target.write(b'{"format": 1, "epoch": 3, "history": [{"epoch"')


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(500))


def wrong_version(file: Path) -> None:
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))


def deleted(file: Path) -> None:
    file.unlink()


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def folder_of_it_is_gone(file: Path) -> None:
    while file.parent.exists():
        shutil.rmtree(file.parent, ignore_errors=True)  # whoever follows writes into it meanwhile


def link_to_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere.json")


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def pipe_in_its_place(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def enormous(file: Path) -> None:
    os.truncate(file, 64 * 1024 * 1024)


DAMAGES = [
    truncate,
    empty,
    half_written,
    garbage,
    wrong_version,
    deleted,
    folder_in_its_place,
    folder_of_it_is_gone,
    link_to_nowhere,
    link_to_itself,
    pipe_in_its_place,
    enormous,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_last_good_epoch_serves_on_and_a_reset_repairs(
    hub: Hub, environ: dict[str, str], file: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "llm_hub"):
        damage(file)
        assert soon(lambda: hub.standing().problem), "nobody has noticed"
    said = str(hub.standing().problem)
    assert str(file) in said
    assert "--reset" in said or "Upgrade" in said
    assert "epoch 2 goes on serving" in caplog.text
    assert serves(hub) == ("vllm", 2)
    # Whoever wants to switch is told, and changes nothing.
    if damage not in (folder_in_its_place, folder_of_it_is_gone):
        with Hub.from_env(environ, follow=False) as another, pytest.raises(ControlFileDamaged, match="--reset|Upgrade"):
            another.use(text="ollama")
    with pytest.raises(ControlFileDamaged):
        hub.rollback()
    assert serves(hub) == ("vllm", 2)
    # And a reset begins anew, above all numbers that were in use.
    switched = hub.reset()
    assert switched.epoch == 3
    assert (serves(hub), hub.standing().problem) == (("ollama", 3), None)
    assert decode(file.read_bytes(), "f").epoch == 3


@pytest.mark.parametrize("damage", [truncate, deleted, link_to_nowhere], ids=lambda damage: damage.__name__)
def test_a_process_that_starts_on_a_damaged_file_begins_with_the_last_good_epoch(
    hub: Hub, environ: dict[str, str], file: Path, damage: Callable[[Path], None]
) -> None:
    damage(file)
    with Hub.from_env(environ) as late:
        assert serves(late) == ("vllm", 2)
        said = str(late.standing().problem)
    command = re.search(r"cp \S+ \S+", said)  # as the message says
    assert command is not None
    subprocess.run(command[0].split(), check=True)
    assert soon(lambda: hub.standing().problem is None)
    assert serves(hub) == ("vllm", 2)


def test_where_everything_was_deleted_a_new_switch_goes_above_what_live_processes_are_on(
    hub: Hub, environ: dict[str, str], file: Path
) -> None:
    hub.use(text="vllm")
    assert serves(hub) == ("vllm", 3)
    folder_of_it_is_gone(file)
    assert soon(lambda: hub.standing().problem)
    assert soon(lambda: live(FileBook(str(file)))), "it does not show itself again"
    with Hub.from_env(environ, follow=False) as another:
        assert another.use(text="ollama").epoch == 4
    assert soon(lambda: hub.epoch == 4 and hub.standing().problem is None)
    assert serves(hub) == ("ollama", 4)


def test_with_nothing_to_go_by_it_begins_with_the_environment_and_says_so(
    environ: dict[str, str], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.write_text("{")
    with caplog.at_level(logging.ERROR, "llm_hub"), Hub.from_env(environ) as hub:
        assert serves(hub) == ("ollama", 1)
    assert "starting with epoch 1" in caplog.text


def test_a_file_that_is_damaged_and_restored_is_taken_up_as_it_was_restored(hub: Hub, file: Path) -> None:
    whole = file.read_bytes()
    truncate(file)
    assert soon(lambda: hub.standing().problem)
    file.write_bytes(decode(whole, "f").after("use", {"text": (Target("ollama", None),)}).encode())
    assert soon(lambda: hub.epoch == 3 and hub.standing().problem is None)
    assert serves(hub) == ("ollama", 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.binary(max_size=200), at=st.integers(0, 2000), cut=st.booleans())
def test_whatever_is_in_the_file_the_hub_serves_an_epoch_that_was_published(
    hub: Hub, file: Path, damage: bytes, at: int, cut: bool
) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + damage + (b"" if cut else whole[at + len(damage) :]))
    hub.refresh()
    assert serves(hub)[0] in {"vllm", "ollama"}
    file.write_bytes(whole)
    hub.refresh()
    assert (serves(hub), hub.standing().problem) == (("vllm", 2), None)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_link_to_the_file_is_followed_by_those_who_read_and_those_who_write(
    environ: dict[str, str], file: Path, tmp_path: Path
) -> None:
    file.parent.mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(file)
    with Hub.from_env({**environ, "LLM_HUB_STATE": str(link)}) as one, Hub.from_env(environ) as other:
        assert serves(other) == ("ollama", 1)
        one.use(text="vllm")
        assert link.is_symlink()
        assert file.is_file()
        assert soon(lambda: other.epoch == 2)


WRITER = """
import sys
from llm_hub.control_file import FileBook
from llm_hub.selection import Target
path, name = sys.argv[1:]
for _ in range(8):
    FileBook(path).update(
        lambda now: now.after("use", {**now.current.bindings, name: (Target(name[0], None),)}, by=name)
    )
"""


def test_writers_at_once_lose_nothing_of_each_other_and_readers_see_whole_files(file: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), name]) for name in ("text", "embedding", "vision")
    ]
    book, seen = FileBook(str(file)), 0
    while any(one.poll() is None for one in writers):
        document = book.read()
        assert document.epoch >= seen
        seen = document.epoch
        time.sleep(0.001)
    assert [one.wait() for one in writers] == [0, 0, 0]
    document = book.read()
    assert document.epoch == 25
    assert {key: targets[0].backend for key, targets in document.current.bindings.items()} == {
        "text": "t",
        "embedding": "e",
        "vision": "v",
    }
    assert {by: sum(one.by == by for one in document.history) for by in ("text", "embedding", "vision")} == {
        "text": 8,
        "embedding": 8,
        "vision": 8,
    }


def test_two_hubs_that_switch_different_capabilities_at_once_both_have_their_way(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub.from_env(environ) as one, Hub.from_env(environ) as other:
        ready = threading.Barrier(2)
        threads = [
            threading.Thread(target=lambda: (ready.wait(), one.use(text="vllm"))),
            threading.Thread(target=lambda: (ready.wait(), other.use(vision_read="tesseract"))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert soon(lambda: one.epoch == other.epoch == 3)
        assert set(one.in_force.bindings) == set(other.in_force.bindings) == {"text", "vision.read"}


CHILD = """
import fcntl, os, resource, signal, sys, tempfile
from llm_hub.control_file import FileBook
from llm_hub.errors import ControlFileDamaged
how, path = sys.argv[1:]
if how == "no room":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
elif os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    FileBook(path).update(lambda now: now.after("reset", {}))
except ControlFileDamaged as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [("no room", "cannot be written: .*; nothing has changed"), ("no right", "cannot be written: Permission denied")],
)
def test_a_writer_that_cannot_write_says_why_and_leaves_the_file_whole(how: str, said: str) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        file = folder / "control.json"
        FileBook(str(file)).update(lambda now: now.after("use", {"text": (Target("a", None),)}))
        before = file.read_bytes()
        if how == "no right":
            for one in (folder, Path(f"{file}.d")):
                one.chmod(0o555)
        child = subprocess.run([sys.executable, "-c", CHILD, how, str(file)], capture_output=True, text=True)
        assert child.returncode == 3, child.stderr
        assert re.search(said, child.stdout)
        assert "LLM_HUB_STATE" in child.stdout or "nothing has changed" in child.stdout
        assert file.read_bytes() == before
        assert sorted(os.listdir(folder)) == ["control.json", "control.json.d"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = FileBook(str(file))
    book.update(lambda now: now.after("reset", {}))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ControlFileDamaged, match="No space left on device; nothing has changed.*Make room"):
        book.update(lambda now: now.after("reset", {}))
    monkeypatch.undo()
    assert book.read().epoch == 2


def test_what_a_writer_left_that_was_killed_is_taken_away(file: Path) -> None:
    book = FileBook(str(file))
    book.update(lambda now: now.after("reset", {}))
    (file.parent / ".control.json.abcd1234").write_text("half")
    (file.parent / ".control.json.of-somebody-else").write_text("mine")
    book.update(lambda now: now.after("reset", {}))
    assert sorted(os.listdir(file.parent)) == [".control.json.of-somebody-else", "control.json", "control.json.d"]


def test_a_writer_that_does_not_let_go_is_not_waited_for_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("llm_hub.control_file._LONGEST_LOCK", 0.1)
    book = FileBook(str(file))
    with open(f"{book.make_folder()}/lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ControlFileDamaged, match="another writer has kept it locked.*fuser"):
            book.update(lambda now: now.after("reset", {}))


def test_whoever_may_go_about_in_the_folder_may_read_and_write_the_file(tmp_path: Path) -> None:
    for mode, expected in ((0o755, 0o644), (0o700, 0o600), (0o777, 0o666)):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        folder.chmod(mode)
        FileBook(str(folder / "control.json")).update(lambda now: now.after("reset", {}))
        assert (folder / "control.json").stat().st_mode & 0o777 == expected
        assert (folder / "control.json.d").stat().st_mode & 0o777 == mode


def test_a_process_that_cannot_write_there_follows_all_the_same(
    environ: dict[str, str], file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    FileBook(str(file)).update(lambda now: now.after("reset", {}))
    monkeypatch.setattr("llm_hub.following.Presence", refuse)
    with Hub.from_env(environ) as hub:
        assert serves(hub) == ("ollama", 2)
        FileBook(str(file)).update(lambda now: now.after("use", {"text": (Target("vllm", None),)}))
        assert soon(lambda: hub.epoch == 3)
        assert serves(hub) == ("vllm", 3)
    assert "so `llm-hub status` does not show it: [Errno 30]" in caplog.text


def test_the_document_reads_like_json_for_people(file: Path) -> None:
    FileBook(str(file)).update(lambda now: now.after("use", {"text": (Target("a", "m"),)}, by="me@here"))
    assert json.loads(file.read_text())["history"][-1]["bindings"] == {"text": [{"backend": "a", "model": "m"}]}
    assert Document.first().current.described == "before any switch: as the environment and the settings file say"
