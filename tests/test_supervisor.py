"""Backends that are really started as processes: in turn, healed, given up, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub, Settings
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import ConfigurationError, HubError, SettingsError
from llm_hub.gpu import Gpu, Inventory, Plan, resolve
from llm_hub.hookspecs import hookimpl
from llm_hub.http_backend import HttpBackend
from llm_hub.launch import API_KEY, Device, Devices, LaunchSpec
from llm_hub.manifest import PluginManifest
from llm_hub.openai_dialect import OpenAIDialect
from llm_hub.process import MARK, Process, is_alive, started_at, sweep, tail
from llm_hub.running import Register, Running, RunningBackend, folder_of, read_running
from llm_hub.settings import Assignment
from llm_hub.starting import environment, expanded, free_port, startable, taken, without_exclusive
from llm_hub.supervisor import Event, Policy, Supervisor

SERVER = Path(__file__).with_name("stub_server.py")
QUICK = Policy(first=0.05, longest=0.2, attempts=3, settled=30, every=0.1, answer=1.0, misses=3)


class Stub:
    """A plugin whose server is a few lines; `how` are its arguments for each backend."""

    def __init__(self) -> None:
        self.how: dict[str, list[str]] = {}
        self.grace = 2.0
        self.fetched: Path | None = None

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version="1.0", default_url="http://127.0.0.1:1")

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> HttpBackend:
        dialect = OpenAIDialect(health_path="/health", models_are_loaded=True)
        return HttpBackend(dialect, config=config, context=context, default_url="http://127.0.0.1:1")

    @hookimpl
    def llm_hub_launch(self, config: BackendConfig, devices: Devices) -> LaunchSpec | None:
        if config.name == "embedded":
            return None
        how = self.how.get(config.name, [])
        command = how if how[:1] == ["/no/such/program"] else [sys.executable, "-I", "-S", str(SERVER), "{port}", *how]
        return LaunchSpec(
            command=tuple(command),
            health_path="/health",
            environment={"STUB_KEY": API_KEY, "STUB_NAME": "${USER_OF_STUB:-nobody}"},
            devices=devices,
            stop_grace=self.grace,
            start_timeout=10,
            fetch=(("sh", "-c", f"echo fetching; touch {self.fetched}"),) if self.fetched else (),
        )


class Up:
    """A supervisor at work in a thread, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugin = Stub()
        self.events: list[Event] = []
        self.fine: bool | None = None
        self._close: list[Callable[[], object]] = []

    def start(self, *names: str, gpus: dict[str, str] | None = None, policy: Policy = QUICK, **more: Any) -> Supervisor:
        backends = {
            name: {"plugin": "stub", "base_url": f"http://127.0.0.1:{free_port()}", "models": {"text": "m"}}
            for name in names
        }
        hub = Hub(Settings.of(backends=backends, plugins=["stub"]), plugins={"stub": self.plugin})
        devices = {name: Devices(gpus=(Device(id=gpu),)) for name, gpu in (gpus or {}).items()}
        found, others = startable(hub.runtime, devices=devices)
        assert others == ()
        register = Register(self.folder)
        supervisor = Supervisor(hub.runtime, found, register, say=self.events.append, policy=policy, **more)

        def run() -> None:
            self.fine = supervisor.run()

        thread = threading.Thread(target=run)
        thread.start()

        def end() -> None:
            supervisor.stop()
            thread.join(20)
            assert not thread.is_alive()
            register.close()
            hub.close()

        self._close.append(end)
        return supervisor

    def stop(self) -> None:
        while self._close:
            self._close.pop()()

    def wait(self, backend: str, state: str, *, count: int = 1) -> Event:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = [one for one in self.events if (one.backend, one.state) == (backend, state)]
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.01)
        raise AssertionError(f"{backend} did not become {state}: {self.events}")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path / "control.up")
    yield made
    made.stop()


def test_what_was_started_serves_is_registered_and_stops_cleanly(up: Up) -> None:
    supervisor = up.start("a", "b")
    up.wait("a", "ready")
    up.wait("b", "ready")
    running = read_running(str(up.folder.with_suffix(".json")))
    assert running is not None
    assert running.alive
    assert {name: one.state for name, one in running.backends.items()} == {"a": "ready", "b": "ready"}
    assert all(one.alive for one in running.backends.values())
    pids = [one.pid for one in supervisor.backends.values()]
    up.stop()
    assert up.fine
    assert [started_at(pid) for pid in pids] == [None, None]
    assert "bye" in (up.folder / "logs" / "a.log").read_text()  # it was asked, and not killed
    assert {one.state for one in supervisor.backends.values()} == {"stopped"}


def test_one_that_is_killed_is_started_again(up: Up) -> None:
    supervisor = up.start("a")
    up.wait("a", "ready")
    first = supervisor.backends["a"].pid
    os.kill(first, signal.SIGKILL)
    assert "ended with SIGKILL" in up.wait("a", "restarting").text
    up.wait("a", "ready", count=2)
    second = supervisor.backends["a"]
    assert second.pid != first
    assert second.restarts == 1
    os.kill(second.guardian, signal.SIGKILL)  # the backend goes with what watches over it
    up.wait("a", "ready", count=3)
    assert started_at(second.pid) is None


def test_one_that_cannot_serve_is_given_up_with_the_end_of_its_log(up: Up) -> None:
    up.plugin.how["bad"] = ["--exit", "3"]
    up.start("bad", "good")
    given_up = up.wait("bad", "failed")
    assert "ended with code 3 before it served; given up after 3 starts" in given_up.text
    assert given_up.lines[-1] == "cannot: no memory"
    assert str(up.folder / "logs" / "bad.log") in given_up.hint
    up.wait("good", "ready")  # the others go on
    up.stop()
    assert not up.fine


def test_a_program_that_is_not_there_is_not_tried_again(up: Up) -> None:
    up.plugin.how["none"] = ["/no/such/program"]
    up.start("none")
    failed = up.wait("none", "failed")
    assert "/no/such/program cannot be started: No such file" in failed.text
    assert "Install /no/such/program" in failed.hint
    assert [one.state for one in up.events] == ["failed"]


def test_one_that_no_longer_answers_is_killed_and_started_again(up: Up) -> None:
    supervisor = up.start("a", policy=Policy(first=0.05, every=0.05, answer=0.2, misses=2))
    up.wait("a", "ready")
    os.kill(supervisor.backends["a"].pid, signal.SIGSTOP)
    up.wait("a", "unresponsive")
    up.wait("a", "ready", count=2)


def test_a_load_is_waited_for_and_a_missing_model_is_degraded(up: Up) -> None:
    up.plugin.how = {"slow": ["--loading", "0.5"], "wrong": ["--model", "other"]}
    up.start("slow", "wrong")
    degraded = up.wait("wrong", "degraded")
    assert "does not have the model 'm'" in degraded.text
    up.wait("slow", "ready")
    assert [one.state for one in up.events if one.backend == "slow"] == ["starting", "ready"]


def test_models_that_are_missing_are_fetched_if_that_is_wanted(up: Up, tmp_path: Path) -> None:
    up.plugin.fetched = tmp_path / "fetched"
    up.plugin.how["a"] = ["--needs", str(up.plugin.fetched)]
    up.start("a", "b", fetch=True)
    up.wait("b", "ready")
    up.wait("a", "ready")
    assert up.plugin.fetched.exists()
    fetching = [one.backend for one in up.events if one.text.startswith("fetching: sh -c")]
    assert fetching == ["a"], "what is there is not fetched"
    assert "fetching" in (up.folder / "logs" / "a.log").read_text()


def test_one_that_is_not_as_planned_is_degraded_with_the_reason_until_it_is(up: Up) -> None:
    wrong = [("a runs on GPU 0, and was put on GPU 1", "start it again")]
    quick = Policy(every=0.05, check=0.1)
    up.start("a", policy=quick, check=lambda one: wrong[0] if wrong else None)
    degraded = up.wait("a", "degraded")
    assert degraded.text == "a runs on GPU 0, and was put on GPU 1"
    assert degraded.hint == "start it again"
    wrong.clear()
    up.wait("a", "ready")


def test_a_look_that_fails_is_told_and_ends_nothing(up: Up) -> None:
    broken = [OSError("no usable temporary directory")]

    def check(_: object) -> None:
        if broken:
            raise broken[0]

    supervisor = up.start("a", policy=Policy(every=0.05, check=0.1), check=check)
    degraded = up.wait("a", "degraded")
    assert degraded.text == "it could not be compared with the plan: OSError: no usable temporary directory"
    pid = supervisor.backends["a"].pid
    broken.clear()
    up.wait("a", "ready")
    assert supervisor.backends["a"].pid == pid
    assert supervisor.backends["a"].alive


def test_a_log_or_a_register_that_cannot_be_written_is_said_at_once(up: Up, tmp_path: Path) -> None:
    (up.folder / "logs" / "a.log").mkdir(parents=True)
    up.start("a")
    failed = up.wait("a", "failed")
    assert "a.log: Is a directory" in failed.text
    assert "LLM_HUB_STATE" in failed.hint
    up.stop()
    assert not [one for one in up.events if one.state in ("starting", "restarting")]
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="cannot keep what it knows in .*file/x.up: Not a directory"):
        Register(tmp_path / "file" / "x.up")
    (tmp_path / "y.up" / "running.json").mkdir(parents=True)
    running = Running(mark="m", pid=1, began="1", since=0)
    with Register.held(tmp_path / "y.up") as register, pytest.raises(HubError, match="running.json: Is a directory"):
        register.write(running)


def test_backends_on_one_gpu_start_one_after_the_other(up: Up) -> None:
    up.plugin.how = {name: ["--loading", "0.3"] for name in ("a", "b", "c")}
    up.start("a", "b", "c", gpus={"a": "GPU-1", "b": "GPU-1", "c": "GPU-2"})
    for name in ("a", "b", "c"):
        up.wait(name, "ready")
    order = [(one.backend, one.state) for one in up.events if one.backend in ("a", "b")]
    assert [state for _, state in order] == ["starting", "ready", "starting", "ready"]
    assert order[0][0] == order[1][0]
    on_gpu = next(one for one in up.events if one.backend == "c")
    assert on_gpu.text.endswith("on GPU-2")


def test_one_that_does_not_stop_is_killed_and_a_second_stop_is_at_once(up: Up) -> None:
    up.plugin.how["deaf"] = ["--deaf"]
    up.plugin.grace = 30
    supervisor = up.start("deaf")
    up.wait("deaf", "ready")
    pid = supervisor.backends["deaf"].pid
    supervisor.stop()
    time.sleep(0.3)
    assert started_at(pid) is not None
    began = time.monotonic()
    up.stop()
    assert time.monotonic() - began < 10
    assert started_at(pid) is None


def test_a_second_supervisor_is_refused(up: Up) -> None:
    up.start("a")
    with pytest.raises(HubError, match=f"running already, as process {os.getpid()}") as refused:
        Register(up.folder)
    assert f"kill {os.getpid()}" in (refused.value.hint or "")
    up.stop()
    Register(up.folder).close()


def test_a_port_that_is_taken_is_said_before_anything_is_started(up: Up) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        backends = {"a": {"plugin": "stub", "base_url": f"http://127.0.0.1:{port}"}}
        with Hub(Settings.of(backends=backends, plugins=["stub"]), plugins={"stub": up.plugin}) as hub:
            found, _ = startable(hub.runtime)
            with Register.held(up.folder) as register, pytest.raises(HubError, match=f"listens on 127.0.0.1:{port}"):
                Supervisor(hub.runtime, found, register, say=print).run()
    assert taken("127.0.0.1", port) is None


# -- what can be started ----------------------------------------------------------------------------------------------


def choose(backends: dict[str, Any], **options: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Of these backends, the addresses of those that are started, and why the others are not."""
    given = {name: {"plugin": "stub", **fields} for name, fields in backends.items()}
    with Hub(Settings.of(backends=given, plugins=["stub"]), plugins={"stub": Stub()}) as hub:
        found, others = startable(hub.runtime, **options)
        return {one.name: one.address for one in found}, {one.name: one.reason for one in others}


def test_what_is_elsewhere_or_needs_no_process_is_not_ours_to_start() -> None:
    found, others = choose(
        {
            "here": {"base_url": "http://localhost:8001"},
            "far": {"base_url": "http://192.0.2.1:8000"},
            "unknown": {"base_url": "http://no-such-host.invalid:8000"},
            "proxied": {"base_url": "https://127.0.0.1:8443"},
            "below": {"base_url": "http://127.0.0.1:8000/llm"},
            "embedded": {"base_url": "http://127.0.0.1:8002"},
            "split": {"base_urls": {"text": "http://127.0.0.1:1", "vision": "http://127.0.0.1:2"}},
        }
    )
    assert found == {"here": "http://localhost:8001"}
    assert "192.0.2.1 is not this machine" in others["far"]
    assert "no-such-host.invalid is not this machine" in others["unknown"]
    assert "something stands before it" in others["proxied"]
    assert "something stands before it" in others["below"]
    assert "no process of its own" in others["embedded"]
    assert "several addresses" in others["split"]


def test_one_that_is_asked_for_by_name_and_cannot_be_started_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="is not this machine"):
        choose({"far": {"base_url": "http://192.0.2.1:8000"}}, only=["far"])
    assert choose({"a": {"base_url": "http://127.0.0.1:1"}, "b": {}}, only=["a"])[0] == {"a": "http://127.0.0.1:1"}


def test_what_is_elsewhere_need_not_be_such_that_it_could_be_started() -> None:
    settings = Settings.of(backends={"vllm": {"base_url": "http://192.0.2.1:8000"}}, plugins=["vllm"])
    with Hub(settings) as hub:
        found, (other,) = startable(hub.runtime)
    assert found == ()
    assert not other.wrong, "that it names no model is right: the server has but one"


def test_two_backends_on_one_port_are_an_error_that_offers_another() -> None:
    with pytest.raises(SettingsError, match="'a' and 'b' would both listen on port 8001") as wrong:
        choose({"a": {"base_url": "http://127.0.0.1:8001"}, "b": {"base_url": "http://localhost:8001"}})
    assert "is free" in (wrong.value.hint or "")


def test_a_process_gets_its_own_key_and_no_other() -> None:
    backends = {
        "a": {"plugin": "stub", "base_url": "http://127.0.0.1:8001", "api_key": "key-a"},
        "b": {"plugin": "stub", "base_url": "http://127.0.0.1:8002", "api_key": "key-b"},
    }
    with Hub(Settings.of(backends=backends, plugins=["stub"]), plugins={"stub": Stub()}) as hub:
        on = {"a": Devices(gpus=(Device(id="GPU-1"), Device(id="GPU-2")))}
        (a, _), _ = startable(hub.runtime, devices=on)
        environ = {"A_KEY": "key-a", "B_KEY": "key-b", "PATH": "/bin", "USER_OF_STUB": "me"}
        made = environment(a, environ, hub.settings.backends.values())
    assert made["STUB_KEY"] == made["A_KEY"] == "key-a"
    assert "B_KEY" not in made
    assert made["STUB_NAME"] == "me"
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert made["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "key-a" not in repr(a)
    assert expanded("${NO_SUCH:-fallback}/${PATH}", environ) == "fallback//bin"


def test_one_without_an_assignment_does_not_see_what_another_has_for_itself() -> None:
    cards = Inventory(gpus=tuple(Gpu(index=number, uuid=f"GPU-{number}") for number in range(2)))
    for exclusive, seen in ((True, "GPU-0"), (False, None)):
        placements = resolve([Assignment(backend="v", gpus=(1,), exclusive=exclusive)], cards)
        made = without_exclusive({"PATH": "/bin"}, Plan(placements=placements, inventory=cards))
        assert made.get("CUDA_VISIBLE_DEVICES") == seen
    placements = resolve([Assignment(backend="v", gpus=(0, 1), exclusive=True)], cards)
    plan = Plan(placements=placements, inventory=cards)
    assert without_exclusive({}, plan)["CUDA_VISIBLE_DEVICES"] == "-1"
    assert without_exclusive({"CUDA_VISIBLE_DEVICES": "0"}, plan) == {"CUDA_VISIBLE_DEVICES": "0"}


# -- one process ------------------------------------------------------------------------------------------------------


def shell(script: str, log: Path, **options: Any) -> Process:
    return Process(["sh", "-c", script], environ=os.environ, log=log, mark=f"test-{os.getpid()}/x", **options)


def children_of(pid: int) -> int:
    said = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return len(said.stdout.split())


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_children_that_leave_the_group_end_with_the_process(tmp_path: Path) -> None:
    process = shell("setsid sleep 987 & sleep 986 & echo up; wait", tmp_path / "log")
    wait_for(lambda: children_of(process.pid) == 2)
    process.stop(5)
    assert process.wait(10)
    assert process.code == -signal.SIGTERM
    assert sweep(process.mark) == 0


def test_it_ends_even_if_its_guardian_does_not_answer(tmp_path: Path) -> None:
    process = shell("setsid sleep 981 & sleep 980 & wait", tmp_path / "log")
    wait_for(lambda: children_of(process.pid) == 2)
    os.kill(process.guardian, signal.SIGSTOP)
    process.stop(0)
    process.end(0.1)
    assert process.code == -signal.SIGKILL
    assert started_at(process.pid) is None
    assert sweep(process.mark) == 0


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(4):
        process = shell("i=0; while [ $i -lt 1200 ]; do echo line $i; i=$((i+1)); done", log, log_limit=8192)
        assert process.wait(10)
        assert process.code == 0
    kept = sorted(tmp_path.iterdir())
    assert [one.name for one in kept] == ["log", "log.1", "log.2"]
    assert all(one.stat().st_size < 8192 + 65536 for one in kept)
    assert log.stat().st_mode & 0o077 == 0
    assert tail(log, 2) == ["line 1198", "line 1199"]


def test_the_end_of_a_log_is_that_of_its_last_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == []
    shell("echo one; echo two", log).wait(10)
    assert tail(log) == ["one", "two"]
    shell("echo three", log).wait(10)
    assert tail(log) == ["three"]
    log.rename(tmp_path / "log.1")
    log.write_text("four\n")
    assert tail(log) == ["three", "four"]


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_it() -> None:
    assert is_alive(os.getpid(), started_at(os.getpid()))
    assert not is_alive(os.getpid(), "1")
    assert not is_alive(0, None)
    backend = RunningBackend(state="ready", address="http://x", plugin="p", log="l", pid=os.getpid(), began="1")
    assert not backend.alive


UP_AND_DIE = """
import os, sys
from pathlib import Path
from llm_hub.process import Process
process = Process(sys.argv[2:], environ=os.environ, log=Path(sys.argv[1]), mark="orphan-test", orphan_grace=0.3)
print(process.pid, process.guardian, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; setsid sleep 985 & sleep 984 & echo up; wait; sleep 983"
    with subprocess.Popen(
        [sys.executable, "-c", UP_AND_DIE, str(tmp_path / "log"), "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        pid, guardian = map(int, supervisor.stdout.readline().split())
        wait_for(lambda: children_of(pid) == 2)
        supervisor.kill()
    wait_for(lambda: started_at(pid) is None and started_at(guardian) is None)
    assert sweep("orphan-test") == 0, "all of it ended by itself"


def test_what_a_killed_supervisor_left_is_cleared_away_by_the_next(up: Up) -> None:
    with subprocess.Popen(["sleep", "982"], env={**os.environ, MARK: "before/a"}) as left:
        backend = RunningBackend(state="ready", address="http://x", plugin="stub", log="l", pid=left.pid, began="1")
        assert read_running(None) is None
        with Register.held(up.folder) as register:
            register.write(Running(mark="before", pid=999_999_999, began="1", since=0, backends={"a": backend}))
        up.start("a")
        assert left.wait(10) == -signal.SIGKILL
        up.wait("a", "ready")


def test_the_register_lies_beside_the_control_file(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path / "control.json")) == tmp_path / "control.up"
    with pytest.raises(ConfigurationError, match="no control file"):
        folder_of(None)
    assert read_running(str(tmp_path / "control.json")) is None
    (tmp_path / "control.up").mkdir()
    (tmp_path / "control.up" / "running.json").write_text("{")
    with pytest.raises(HubError, match="running.json cannot be read"):
        read_running(str(tmp_path / "control.json"))
