"""What the driver and the servers say beside the plan: every way of not being where one was put, and none too many."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub, Settings
from llm_hub.diagnosis import diagnose
from llm_hub.drift import drift, look
from llm_hub.gpu import Gpu, GpuProcess, Inventory, MigInstance, Placement, resolve
from llm_hub.gpu.planning import descendants
from llm_hub.overview import overview
from llm_hub.process import listener, started_at
from llm_hub.running import Register, Running, RunningBackend, folder_of
from llm_hub.settings import Assignment
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM
from llm_hub.truth import Seen, compare

GIB = 1 << 30


def card(index: int, *processes: tuple[int, int], **fields: Any) -> Gpu:
    listed = tuple(GpuProcess(pid=pid, memory=size * GIB) for pid, size in processes)
    defaults = {"uuid": f"GPU-{index}", "total": 24 * GIB, "used": sum(size for _, size in processes) * GIB}
    return Gpu(index=index, name="RTX", processes=listed, **{**defaults, **fields})


def placed(backend: str, *gpus: int | str, inventory: Inventory, **fields: Any) -> dict[str, Placement]:
    return resolve([Assignment(backend=backend, gpus=gpus, source="llm-hub.toml:9", **fields)], inventory)


def codes(
    inventory: Inventory, seen: Seen, *gpus: int | str, backend: str = "vllm", **fields: Any
) -> list[tuple[str, str]]:
    found = compare(placed(backend, *gpus, inventory=inventory, **fields), inventory, {backend: seen})
    return [(one.code, one.level) for one in found]


MINE = Seen(pids=frozenset({100, 101}), loaded=True)


def test_a_backend_that_is_where_it_was_put_is_no_finding() -> None:
    inventory = Inventory(gpus=(card(0, (7, 1)), card(1, (101, 20))))
    assert codes(inventory, MINE, 1) == []
    assert codes(inventory, MINE, 1, memory="20 GiB") == []
    both = Inventory(gpus=(card(0, (100, 10)), card(1, (101, 10))))
    assert codes(both, MINE, 0, 1) == []


def test_a_wrong_card_is_drift_that_names_both() -> None:
    inventory = Inventory(gpus=(card(0, (100, 20)), card(1)))
    placements = placed("vllm", 1, inventory=inventory)
    wrong, missing = compare(placements, inventory, {"vllm": MINE})
    assert (wrong.code, wrong.level, wrong.gpu) == ("wrong-gpu", "error", "GPU-0")
    assert str(wrong) == "llm-hub.toml:9: vllm runs on GPU 0 (RTX) [GPU-0], and was put on GPU 1"
    assert "llm-hub up" in wrong.fix
    assert (missing.code, missing.level) == ("not-on-gpu", "error")
    assert "it runs on the CPU" not in missing.message


def test_one_that_is_on_no_card_runs_on_the_cpu() -> None:
    inventory = Inventory(gpus=(card(0, (7, 1)), card(1)))
    (only,) = compare(placed("vllm", 1, inventory=inventory), inventory, {"vllm": MINE})
    assert only.code == "not-on-gpu"
    assert only.message.endswith("which it was put on: it runs on the CPU")


def test_one_without_a_model_in_memory_need_not_be_on_a_card() -> None:
    inventory = Inventory(gpus=(card(0, (7, 1)),))
    assert codes(inventory, Seen(pids=frozenset({100}), loaded=False), 0) == []


def test_a_driver_that_lists_nobody_is_not_believed_to_know() -> None:
    inventory = Inventory(gpus=(card(0, used=20 * GIB),))
    assert codes(inventory, MINE, 0) == [("unverified", "info")]


def test_what_cannot_be_seen_from_here_is_believed_and_said() -> None:
    inventory = Inventory(gpus=(card(0, (100, 1)),))
    assert codes(inventory, Seen(pids=None, loaded=True), 0) == [("unverified", "info")]
    assert codes(Inventory(reason="no driver"), MINE, 0) == [("unverified", "info")]
    assert codes(inventory, MINE, "GPU-elsewhere") == [("unverified", "info")]


def test_more_than_its_claim_is_drift() -> None:
    inventory = Inventory(gpus=(card(0, (100, 12)),))
    assert codes(inventory, MINE, 0, memory="10 GiB") == [("over-claim", "error")]
    assert codes(inventory, MINE, 0, memory=0.25) == [("over-claim", "error")]
    assert codes(inventory, MINE, 0, memory="12 GiB") == []


def test_what_its_server_says_counts_without_a_driver() -> None:
    spill = Seen(complaints=("llava:7b: 40 % of the model runs on the CPU",))
    found = codes(Inventory(reason="no driver"), spill, 0, backend="ollama")
    assert found == [("not-on-gpu", "error"), ("unverified", "info")]


def test_another_share_than_planned_is_drift() -> None:
    inventory = Inventory(gpus=(card(0, (100, 10)),))
    shared = Seen(pids=frozenset({100}), share=0.92)
    assert codes(inventory, shared, 0, memory=0.5) == [("other-share", "error")]
    assert codes(inventory, shared, 0, memory=0.92) == []
    assert codes(inventory, shared, 0) == []


def test_an_instance_of_a_card_may_be_listed_with_its_card() -> None:
    instances = (MigInstance(uuid="MIG-a", index=0), MigInstance(uuid="MIG-b", index=1))
    with_card = Inventory(gpus=(card(0, (100, 5), mig=True, instances=instances),))
    assert codes(with_card, MINE, "MIG-a") == []
    other = (MigInstance(uuid="MIG-a", index=0), MigInstance(uuid="MIG-b", index=1, processes=(GpuProcess(pid=100),)))
    on_other = Inventory(gpus=(card(0, mig=True, instances=other),))
    assert codes(on_other, MINE, "MIG-a") == [("wrong-gpu", "error"), ("not-on-gpu", "error")]


def test_one_without_an_assignment_must_leave_exclusive_cards_alone() -> None:
    inventory = Inventory(gpus=(card(0, (100, 5)), card(1, (200, 5))))
    placements = placed("vllm", 1, inventory=inventory, exclusive=True)
    assert compare(placements, inventory, {"ollama": MINE}) == ()
    there = Seen(pids=frozenset({200}))
    (found,) = compare(placements, inventory, {"ollama": there})
    assert found.message == "ollama has no assignment and runs on GPU 1 (RTX) [GPU-1], which vllm has for itself"


# -- looking ----------------------------------------------------------------------------------------------------------


def settings(backends: Mapping[str, Any], gpu: Mapping[str, Any], state: Path | None = None) -> Settings:
    return Settings.of(backends=backends, gpu={"assign": gpu}, state=state, plugins=["ollama", "vllm"])


def test_a_spill_of_ollama_is_found_and_said_by_the_doctor(tmp_path: Path) -> None:
    with FakeOllama([FakeModel(name="llava:7b")], in_gpu=0.6) as server:
        backends = {"ollama": {"base_url": server.url, "models": {"text": "llava:7b"}}}
        gpu = {"ollama": {"gpus": [0]}}
        with Hub(settings(backends, gpu, tmp_path / "control.json")) as hub:
            before = look(hub.runtime, "ollama")
            assert before is not None
            assert before.loaded is False
            assert before.pids is not None
            assert os.getpid() in before.pids  # the server is in this process
            hub.text().chat("Hello")
            found = drift(hub.runtime, inventory=Inventory(gpus=(card(0, (os.getpid(), 5)),)))
            assert [(one.code, one.level) for one in found] == [("not-on-gpu", "error")]
            assert "llava:7b: 40 % of the model runs on the CPU" in found[0].message
            diagnosis = diagnose(hub, timeout=5)
    said = [one for one in diagnosis.findings if one.state == "drift"]
    assert said
    assert not diagnosis.healthy
    assert "`llm-hub plan` counts" in said[0].fix


def test_a_damaged_register_does_not_keep_the_doctor_from_telling_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    folder_of(str(path)).mkdir()
    (folder_of(str(path)) / "running.json").write_text("{")
    with FakeOllama([FakeModel(name="m")]) as server:
        backends = {"ollama": {"base_url": server.url, "models": {"text": "m"}}}
        with Hub(settings(backends, {"ollama": {"gpus": [0]}}, path)) as hub:
            findings = diagnose(hub, timeout=5).findings
    (gpu,) = [one for one in findings if one.subject == "gpu"]
    assert (gpu.state, gpu.level) == ("not compared", "error")
    assert "running.json cannot be read" in gpu.detail
    assert gpu.fix == "Remove it, if no `llm-hub up` is running."
    assert [one.state for one in findings if one.subject == "ollama (text)"] == ["ready"]


def test_the_share_that_vllm_was_started_with_is_asked_for() -> None:
    with FakeVLLM(memory_share=0.92) as server:
        backends = {"vllm": {"base_url": server.url, "models": {"text": "hub-test-vlm"}}}
        with Hub(settings(backends, {"vllm": {"gpus": [0], "memory": 0.5}})) as hub:
            inventory = Inventory(gpus=(card(0, (os.getpid(), 5)),))
            (found,) = drift(hub.runtime, inventory=inventory)
    assert found.code == "other-share"
    assert "was started with 0.92 of its GPU's memory, and the plan gives it 0.5" in found.message


def test_the_recorded_vllm_tells_its_share() -> None:
    from llm_hub_vllm.metrics import parse_share

    recorded = (Path(__file__).parent / "data" / "wire" / "vllm" / "metrics.json").read_text("utf-8")
    assert parse_share(recorded.replace("\\n", "\n").replace('\\"', '"')) == 0.92
    assert parse_share('vllm:cache_config_info{block_size="16"} 1') is None


def test_nothing_is_looked_at_where_nothing_is_assigned_or_nothing_serves() -> None:
    backends = {"ollama": {"base_url": "http://127.0.0.1:1", "models": {"text": "m"}}}
    with Hub(settings(backends, {})) as hub:
        assert drift(hub.runtime) == ()
    with Hub(settings(backends, {"ollama": {"gpus": [0]}})) as hub:
        assert drift(hub.runtime, inventory=Inventory()) == ()


def test_the_process_that_listens_on_a_port_is_found_with_its_children() -> None:
    script = (
        "import socket, subprocess, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); child = subprocess.Popen(['sleep', '60'])\n"
        "print(s.getsockname()[1], child.pid, flush=True); sys.stdin.read(); child.kill(); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port, child = map(int, process.stdout.readline().split())
        assert listener(port) == process.pid
        assert descendants({process.pid: "x"}) == {process.pid: "x", child: "x"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert listener(free.getsockname()[1]) is None, "bound is not listening"


@pytest.mark.parametrize(
    ("state", "level"), [("ready", "ok"), ("degraded", "warning"), ("failed", "error"), ("stopped", "info")]
)
def test_the_doctor_tells_how_what_up_started_fares(tmp_path: Path, state: Any, level: str) -> None:
    path = tmp_path / "control.json"
    backend = RunningBackend(state=state, address="http://127.0.0.1:1", plugin="ollama", log="/l", detail="so it is")
    with Register.held(folder_of(str(path))) as register:
        running = Running(mark="m", pid=os.getpid(), began=started_at(os.getpid()), since=0, backends={"o": backend})
        register.write(running)
        with Hub(Settings.of(state=path)) as hub:
            assert overview(hub, timeout=1).started == {"o": backend}
            found = [one for one in diagnose(hub, timeout=1).findings if one.kind == "running"]
        assert [(one.subject, one.state, one.level, one.detail) for one in found] == [("o", state, level, "so it is")]
        register.write(Running(mark="m", pid=os.getpid(), began="1", since=0, backends={"o": backend}))
        with Hub(Settings.of(state=path)) as hub:
            assert overview(hub, timeout=1).started == {}
            found = [one for one in diagnose(hub, timeout=1).findings if one.kind == "running"]
        ended = [] if state == "stopped" else [("up", "ended", "warning")]
        assert [(one.subject, one.state, one.level) for one in found] == ended
