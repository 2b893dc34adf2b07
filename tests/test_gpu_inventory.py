"""Inventories through a stand-in libnvidia-ml.so.1 under the real nvidia-ml-py: every kind of machine, and a driver that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.gpu.checks import make_plan
from llm_hub.gpu.facts import KVLayers, ModelFacts
from llm_hub.gpu.inventory import Gpu, Inventory, MigInstance, read_inventory
from llm_hub.gpu.known import Known, KnownModel
from llm_hub.gpu.nvidia import NvidiaSource
from llm_hub.gpu.nvml import named
from llm_hub.gpu.proposal import propose, to_toml
from llm_hub.gpu.visible import apply_visibility
from llm_hub.launch import GpuNeeds
from llm_hub.settings import Settings
from llm_hub.testing.nvml import NoCompiler, StandInDriver, StandInGpu, StandInInstance, StandInProcess

GIB = 1 << 30
LOST = "the driver has lost it"
A, B, C = "GPU-aaaa0000-1111-2222-3333-444444444444", "GPU-bbbb0000-1111", "GPU-cccc0000-1111"
SLICES = (
    StandInInstance(uuid="MIG-1111", place=0),
    StandInInstance(uuid="MIG-2222", place=3, used=GIB, processes=(StandInProcess(pid=2**22 + 1, memory=GIB),)),
)

MACHINES: dict[str, dict[str, Any]] = {
    "none": {},
    **{
        f"{number} cards": {"gpus": [StandInGpu(uuid=f"GPU-{at:04}") for at in range(number)]}
        for number in (1, 2, 4, 8)
    },
    "mixed sizes": {
        "gpus": [
            StandInGpu(uuid=A, total=24 * GIB, used=3 * GIB),
            StandInGpu(uuid=B, name="NVIDIA H100 80GB HBM3", total=80 * GIB),
        ]
    },
    "in another order than the bus": {
        "gpus": [
            StandInGpu(uuid=A, pci="00000001:01:00.0"),
            StandInGpu(uuid=B, pci="00000000:C1:00.0"),
            StandInGpu(uuid=C, pci="00000000:41:00.0"),
        ]
    },
    "MIG": {"gpus": [StandInGpu(uuid=A, mig=SLICES), StandInGpu(uuid=B), StandInGpu(uuid=C, mig=())]},
    "a lost card": {"gpus": [StandInGpu(uuid=A), StandInGpu(uuid=B, lost=True), StandInGpu(uuid=C)]},
    **{
        f"lost at {call}": {"gpus": [StandInGpu(uuid=A, mig=SLICES, fails={call: 15}), StandInGpu(uuid=B)]}
        for call in (
            "nvmlDeviceGetHandleByIndex_v2",
            "nvmlDeviceGetName",
            "nvmlDeviceGetUUID",
            "nvmlDeviceGetPciInfo_v3",
            "nvmlDeviceGetMigMode",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetMemoryInfo_v2",
        )
    },
    "no memory told": {
        "gpus": [StandInGpu(uuid=A, fails={"nvmlDeviceGetMemoryInfo_v2": 3, "nvmlDeviceGetMemoryInfo": 3})]
    },
    "in need of a reset": {"gpus": [StandInGpu(uuid=A, fails={"nvmlDeviceGetUUID": 16})]},
    "processes": {
        "gpus": [
            StandInGpu(
                uuid=A,
                used=5 * GIB,
                processes=(
                    StandInProcess(pid=os.getpid(), memory=2 * GIB),
                    StandInProcess(pid=2**22 + 7, memory=None),
                ),
            )
        ]
    },
    "no driver in the kernel": {"init": 9},
    "another version in the kernel": {"init": 18},
    "no permission": {"init": 4},
    "an unknown error": {"init": 999},
    "no count": {"gpus": [StandInGpu(uuid=A)], "count": 15},
}

# Reads one description after the other in one process: starting one for each would take longer than all that is tested.
READ_ALL = """
import json, os, sys, msgspec
from llm_hub.gpu.nvml import read
found = {}
for name, path in json.loads(sys.argv[1]).items():
    os.environ["STAND_IN_NVML"] = path
    found[name] = msgspec.to_builtins(read())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> StandInDriver:
    try:
        return StandInDriver(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def machines(driver: StandInDriver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inventory]:
    """The inventory of every machine."""
    folder = tmp_path_factory.mktemp("machines")
    paths = {}
    for number, (name, description) in enumerate(MACHINES.items()):
        driver.describe(**description)
        paths[name] = str(folder / f"{number}.txt")
        Path(driver.environment["STAND_IN_NVML"]).rename(paths[name])
    shut = folder / "shutdown"
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, json.dumps(paths)],
        env={**os.environ, **driver.environment, "STAND_IN_NVML_SHUTDOWN": str(shut)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    begun = sum(not description.get("init") for description in MACHINES.values())
    assert shut.read_text().count("shutdown") == begun, "NVML is shut down as often as it was begun"
    return {name: msgspec.convert(one, Inventory) for name, one in json.loads(done.stdout).items()}


def source(driver: StandInDriver, *, timeout: float = 20.0, **variables: str) -> NvidiaSource:
    return NvidiaSource(timeout=timeout, environ={**os.environ, **driver.environment, **variables})


# -- what is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_every_card_is_listed_with_index_uuid_name_and_memory(machines: dict[str, Inventory], number: int) -> None:
    inventory = machines[f"{number} cards"]
    assert [gpu.index for gpu in inventory.gpus] == list(range(number))
    assert [gpu.uuid for gpu in inventory.gpus] == [f"GPU-{at:04}" for at in range(number)]
    for gpu in inventory.gpus:
        assert gpu.name == "NVIDIA GeForce RTX 4090"
        assert (gpu.total, gpu.used, gpu.free) == (24 * GIB, 0, 24 * GIB - GIB // 2)
        assert not gpu.mig
        assert not gpu.problem
    assert (inventory.driver, inventory.cuda, inventory.reason) == ("580.65.06", "13.0", "")


def test_sizes_are_those_of_each_card(machines: dict[str, Inventory]) -> None:
    small, large = machines["mixed sizes"].gpus
    assert (small.total, small.used) == (24 * GIB, 3 * GIB)
    assert (large.total, large.name) == (80 * GIB, "NVIDIA H100 80GB HBM3")


def test_indices_count_in_the_order_of_the_bus(machines: dict[str, Inventory]) -> None:
    inventory = machines["in another order than the bus"]
    assert [(gpu.index, gpu.uuid) for gpu in inventory.gpus] == [(0, C), (1, B), (2, A)]


def test_instances_of_mig_are_listed_in_the_places_that_are_taken(machines: dict[str, Inventory]) -> None:
    card, plain, empty = machines["MIG"].gpus
    assert card.mig
    assert [(one.uuid, one.index, one.total, one.used) for one in card.instances] == [
        ("MIG-1111", 0, 5 * GIB, 0),
        ("MIG-2222", 3, 5 * GIB, GIB),
    ]
    assert [one.pid for one in card.instances[1].processes] == [2**22 + 1]
    assert (empty.mig, empty.instances) == (True, ())
    assert list(machines["MIG"].units()) == [*card.instances, plain]


def test_a_lost_card_is_told_of_and_the_others_are_listed(machines: dict[str, Inventory]) -> None:
    first, lost, last = machines["a lost card"].gpus
    assert lost.problem.startswith(LOST)
    assert lost.uuid is None
    assert [(gpu.uuid, gpu.problem) for gpu in (first, last)] == [(A, ""), (C, "")]
    assert [gpu.index for gpu in (first, lost, last)] == [0, 1, 2]


@pytest.mark.parametrize("name", [name for name in MACHINES if name.startswith("lost at")])
def test_a_card_may_be_lost_at_any_call(machines: dict[str, Inventory], name: str) -> None:
    lost = next(gpu for gpu in machines[name].gpus if gpu.uuid != B)
    assert lost.problem.startswith(LOST) or name == "lost at nvmlDeviceGetMemoryInfo_v2"  # it has an older one
    assert next(gpu for gpu in machines[name].gpus if gpu.uuid == B).problem == ""


def test_what_the_driver_does_not_tell_is_unknown_and_no_fault(machines: dict[str, Inventory]) -> None:
    (gpu,) = machines["no memory told"].gpus
    assert (gpu.total, gpu.free, gpu.used, gpu.problem) == (None, None, None, "")
    (gpu,) = machines["in need of a reset"].gpus
    assert gpu.problem.startswith("it needs a reset: nvidia-smi --gpu-reset")


def test_who_uses_a_card_is_listed_by_name_without_arguments(machines: dict[str, Inventory]) -> None:
    (gpu,) = machines["processes"].gpus
    mine, other = gpu.processes
    assert (mine.pid, mine.memory) == (os.getpid(), 2 * GIB)
    assert (mine.name or "").startswith(("python", "pytest"))
    assert (other.name, other.memory) == (f"process-{2**22 + 7}", None)  # as the driver names it, without its secret


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/local/bin/ollama\0runner\0--model\0/secret", "ollama"),
        ("/usr/lib/ollama/cuda_v13/llama-server\0--port\01", "ollama/cuda_v13/llama-server"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("/opt/venv/bin/python3\0/opt/venv/bin/vllm\0serve\0--api-key\0secret", "python3 vllm"),
        ("/opt/venv/bin/python3\0-m\0llm_hub_llamacpp\0--model\0m", "python3 -m llm_hub_llamacpp"),
        ("/usr/bin/python3.12\0-u\0-m\0vllm.entrypoints\0--key\0secret", "python3.12 -m vllm.entrypoints"),
        ("python\0run.py\0-m\0secret", "python run.py"),
        ("python\0-u", "python"),
        ("python\0-c\0print('secret')", "python"),
        ("./server\0--key=secret", "./server"),
    ],
)
def test_a_process_is_named_by_what_it_runs(command: str, name: str) -> None:
    words = [word for word in command.split("\0") if word]
    assert named(words) == name
    assert "secret" not in named(words)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "the driver lists no GPU"),
        ("no driver in the kernel", "installed but not loaded"),
        ("another version in the kernel", "of different versions, as after an upgrade: reboot"),
        ("no permission", "look at the rights of /dev/nvidia"),
        ("an unknown error", "does not begin: Unknown Error"),
        ("no count", "does not list its GPUs: GPU is lost"),
    ],
)
def test_an_empty_inventory_says_why(machines: dict[str, Inventory], name: str, said: str) -> None:
    assert machines[name].gpus == ()
    assert said in machines[name].reason


@pytest.mark.parametrize("name", list(MACHINES))
def test_on_each_machine_a_proposal_passes_the_checks(machines: dict[str, Inventory], name: str) -> None:
    inventory, cache = machines[name], (KVLayers(layers=32, elements=2048, heads=8),)
    known = {}
    for backend, weights, share in (("large", 10, 0.9), ("small", 2, None)):
        facts = ModelFacts(architecture="llama", layers=32, hidden=4096, heads=32, weights=weights * GIB, cache=cache)
        needs = GpuNeeds(share=share, split="tensor" if share else "layers", context=8192)
        models = (KnownModel(name="m", facts=facts),)
        known[backend] = Known(backend=backend, plugin="p", needs=needs, models=models)
    proposal = propose(Settings(), inventory, known)
    room = [gpu for gpu in inventory.gpus if not (gpu.problem or gpu.mig) and gpu.total]
    assert len(proposal.placed) == (2 if room else 1 if any(gpu.instances for gpu in inventory.gpus) else 0)
    for one in proposal.placed:
        if known[one.backend].needs.share is not None:
            (gpu,) = [gpu for gpu in inventory.gpus if gpu.uuid in one.gpus]
            needs = msgspec.structs.replace(known[one.backend].needs, share=one.memory / (gpu.total or 1), gpus=1)
            known[one.backend] = msgspec.structs.replace(known[one.backend], needs=needs)
    plan = make_plan(Settings.from_toml(to_toml(proposal)), inventory, known)
    assert not [str(one) for one in plan.findings if one.level == "error"]
    assert plan.verified


# -- asking, in a process of its own ----------------------------------------------------------------------------------


def test_without_a_driver_the_inventory_is_empty_and_says_so(tmp_path: Path) -> None:
    if read_inventory().gpus:
        pytest.skip("this machine has a GPU")
    inventory = NvidiaSource(environ={**os.environ, "NVIDIA_VISIBLE_DEVICES": "void"}).read()
    assert inventory.gpus == ()
    assert "this container was given no GPU (NVIDIA_VISIBLE_DEVICES=void): no NVIDIA driver here" in inventory.reason


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "nvidia-ml-py is not installed (pip install 'llm-hub-core[gpu]')" in read_inventory().reason


def test_a_driver_call_that_never_comes_back_does_not_hold_up_the_caller(driver: StandInDriver) -> None:
    driver.describe([StandInGpu(uuid=A)], hang="nvmlDeviceGetName")
    began = time.monotonic()
    inventory = source(driver, timeout=0.7).read()
    assert time.monotonic() - began < 10
    assert inventory.gpus == ()
    assert "the driver did not answer within 0.7 s" in inventory.reason


def test_a_library_that_crashes_or_prints_harms_nobody(driver: StandInDriver) -> None:
    driver.describe([StandInGpu(uuid=A)], crash="nvmlDeviceGetCount_v2")
    assert "ended by signal 6" in source(driver).read().reason
    driver.describe([StandInGpu(uuid=A)], noise='{"gpus": []}')
    assert [gpu.uuid for gpu in source(driver).read().gpus] == [A]


def test_a_driver_of_before_510_is_understood(tmp_path: Path, driver: StandInDriver) -> None:
    old = StandInDriver(tmp_path, old=True)
    old.describe([StandInGpu(uuid=A, used=GIB, processes=(StandInProcess(pid=2**22 + 1, memory=GIB),))], driver="470.1")
    (gpu,) = source(old).read().gpus
    # It does not tell apart what it keeps for itself.
    assert (gpu.total, gpu.used, gpu.free) == (24 * GIB, GIB + GIB // 2, 22 * GIB + GIB // 2)
    assert [(one.pid, one.memory) for one in gpu.processes] == [(2**22 + 1, GIB)]


# -- what a process may use -------------------------------------------------------------------------------------------

FOUR = Inventory(
    gpus=(
        Gpu(index=0, uuid="GPU-aa11", name="A"),
        Gpu(index=1, uuid="GPU-ab22", name="B"),
        Gpu(index=2, uuid="GPU-cc33", name="B", mig=True, instances=(MigInstance(uuid="MIG-1", index=0),)),
        Gpu(index=3, uuid="GPU-dd44", name="B"),
    )
)


@pytest.mark.parametrize(
    ("value", "left", "noted"),
    [
        ("0,3", ["GPU-aa11", "GPU-dd44"], "counts the fastest card first"),
        ("GPU-aa11", ["GPU-aa11"], ""),
        ("GPU-ab, GPU-d", ["GPU-ab22", "GPU-dd44"], ""),
        ("MIG-1", ["GPU-cc33"], ""),
        ("", [], ""),
        ("-1", [], ""),
        ("0,-1,3", ["GPU-aa11"], "counts the fastest"),
        ("0,7,3", ["GPU-aa11"], "'7' names no GPU here, and CUDA ignores all from there on"),
        ("GPU-a,GPU-d", [], "'GPU-a' names no GPU here"),  # two begin like that
        ("0,GPU-aa11", [], "names a GPU twice, and CUDA then sees none"),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str, left: list[str], noted: str) -> None:
    inventory = apply_visibility(FOUR, {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.uuid for gpu in inventory.gpus if not gpu.hidden_by] == left
    assert noted in " ".join(inventory.notes)
    assert bool(noted) == bool(inventory.notes)
    assert all(gpu.hidden_by in ("", f"CUDA_VISIBLE_DEVICES={value}") for gpu in inventory.gpus)


def test_with_the_order_of_the_bus_indices_are_certain_and_without_the_variable_nothing_is_hidden() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert apply_visibility(FOUR, environ).notes == ()
    assert apply_visibility(FOUR, {}) == FOUR


uuids = st.lists(st.uuids().map("GPU-{}".format), max_size=8, unique=True)


@given(uuids=uuids)
def test_uuid_and_index_name_the_same_card(uuids: list[str]) -> None:
    inventory = Inventory(gpus=tuple(Gpu(index=at, uuid=uuid) for at, uuid in enumerate(uuids)))
    for index, uuid in enumerate(uuids):
        card = inventory.find(index)
        assert card is not None
        assert card is inventory.find(uuid)
        assert card is inventory.find(uuid.upper())
        shortest = next(end for end in range(5, len(uuid) + 1) if len(inventory.matches(uuid[:end])) == 1)
        assert inventory.find(uuid[:shortest]) is card
    assert inventory.find(len(uuids)) is None
    assert msgspec.json.decode(msgspec.json.encode(inventory), type=Inventory) == inventory
