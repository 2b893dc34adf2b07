"""`llm-hub up` and `llm-hub doctor` on a machine with GPUs, as far as its driver says (a stand-in under the real nvidia-ml-py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.running import RunningBackend, read_running
from llm_hub.starting import free_port
from llm_hub.testing.nvml import NoCompiler, StandInDriver, StandInGpu, StandInProcess

GIB = 1 << 30
FIRST, SECOND = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"
OTHERS = {
    name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_", "CUDA_"))
}
LLM_HUB = [sys.executable, "-m", "llm_hub"]


class Machine:
    """Two cards, a backend that was put on the second, and `llm-hub` with both."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.driver = StandInDriver(folder)
        self.folder = folder
        self.state = str(folder / "control.json")
        self.settings = folder / "llm-hub.toml"
        self.settings.write_text(
            f'[backends.tiny]\nplugin = "llamacpp"\nbase_url = "http://127.0.0.1:{free_port()}"\n'
            f'models = {{ text = "{model}" }}\nn_ctx = 512\nlaunch = {{ grace = 0 }}\n'
            '[routes]\ntext = ["tiny"]\n[gpu.assign.tiny]\ngpus = [1]\nmemory = "1 GiB"\nexclusive = true\n'
        )
        self.environ = {
            **OTHERS,
            **self.driver.environment,
            "LLM_HUB_CONFIG": str(self.settings),
            "LLM_HUB_STATE": self.state,
        }

    def describe(self, first: tuple[StandInProcess, ...] = (), second: tuple[StandInProcess, ...] = ()) -> None:
        cards = ((FIRST, first), (SECOND, second))
        self.driver.describe([StandInGpu(uuid=uuid, processes=on, used=GIB // 2) for uuid, on in cards])

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*LLM_HUB, *arguments], env=self.environ, capture_output=True, text=True, check=False)

    def doctor(self) -> list[dict[str, Any]]:
        said = json.loads(self.run("doctor", "--json").stdout)
        return [one for one in said["findings"] if one["kind"] == "running"]

    def tiny(self) -> RunningBackend | None:
        running = read_running(self.state)
        return running.backends["tiny"] if running is not None else None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Machine:
    try:
        return Machine(tmp_path_factory.mktemp("machine"), tiny)
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def up(machine: Machine) -> Iterator[RunningBackend]:
    """The backend, which serves. Its process is on no card: llama.cpp of the wheel knows the CPU alone."""
    machine.describe(first=(StandInProcess(pid=1, memory=GIB),))
    with (machine.folder / "up.txt").open("w") as output:
        process = subprocess.Popen([*LLM_HUB, "up"], env=machine.environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while (found := machine.tiny()) is None or found.state not in ("ready", "degraded"):
            assert time.monotonic() < until
            assert process.poll() is None, (machine.folder / "up.txt").read_text()
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def test_it_sees_its_own_card_alone_by_uuid_in_the_order_of_the_bus(up: RunningBackend) -> None:
    environ = dict(one.split("=", 1) for one in Path(f"/proc/{up.pid}/environ").read_text().split("\0") if "=" in one)
    assert environ["CUDA_VISIBLE_DEVICES"] == SECOND
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert up.gpus == (SECOND,)


def test_one_that_runs_on_the_cpu_is_degraded_with_the_reason(machine: Machine, up: RunningBackend) -> None:
    assert up.state == "degraded"
    assert f"tiny does not use GPU 1 (NVIDIA GeForce RTX 4090) [{SECOND}], which it was put on: it runs on the CPU" in (
        up.detail
    )
    said = (machine.folder / "up.txt").read_text()
    assert "tiny  degraded  " in said
    assert "fix: See its log for why" in said


def test_the_doctor_finds_the_wrong_card_and_too_much_memory_and_is_content_with_the_plan(
    machine: Machine, up: RunningBackend
) -> None:
    machine.describe(first=(StandInProcess(pid=up.pid, memory=GIB // 2),))
    drift = [one for one in machine.doctor() if one["state"] == "drift"]
    assert [one["subject"] for one in drift] == ["tiny", "tiny"]
    assert f"tiny runs on GPU 0 (NVIDIA GeForce RTX 4090) [{FIRST}], and was put on GPU 1" in drift[0]["detail"]
    assert machine.run("doctor").returncode == 1
    machine.describe(second=(StandInProcess(pid=up.pid, memory=2 * GIB),))
    (over,) = [one for one in machine.doctor() if one["state"] == "drift"]
    assert "tiny uses 2.0 GiB" in over["detail"]
    machine.describe(second=(StandInProcess(pid=up.pid, memory=GIB // 2),))
    assert [one for one in machine.doctor() if one["state"] in ("drift", "plan")] == []
    assert machine.run("doctor").returncode == 0


def test_a_plan_that_cannot_be_carried_out_is_refused_before_anything_starts(machine: Machine, tmp_path: Path) -> None:
    machine.describe()
    settings = tmp_path / "llm-hub.toml"
    settings.write_text(machine.settings.read_text().replace("gpus = [1]", "gpus = [7]"))
    environ = {**machine.environ, "LLM_HUB_CONFIG": str(settings), "LLM_HUB_STATE": str(tmp_path / "control.json")}
    refused = subprocess.run([*LLM_HUB, "up"], env=environ, capture_output=True, text=True, check=False)
    assert refused.returncode == 2, refused.stderr
    assert "llm-hub.toml:" in refused.stderr
    assert "7" in refused.stderr
    assert not (tmp_path / "control.up").exists()
    machine.driver.describe([])
    none = subprocess.run([*LLM_HUB, "up"], env=machine.environ, capture_output=True, text=True, check=False)
    assert none.returncode == 2
    assert "no GPU is seen on this machine" in none.stderr
    assert "take [gpu.assign.tiny] out" in none.stderr
