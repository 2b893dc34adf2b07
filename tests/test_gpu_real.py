"""On a machine with an NVIDIA GPU: inventory, pinning by UUID and the truth check against its real driver.

    LLM_HUB_TEST_GPU=1 pytest tests/test_gpu_real.py

Some hundred MiB of each card are used for a moment. Nothing is needed but the driver and nvidia-ml-py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llm_hub.gpu import Gpu, Inventory, read_inventory, resolve
from llm_hub.launch import Devices
from llm_hub.settings import Assignment
from llm_hub.truth import Seen, compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not os.environ.get("LLM_HUB_TEST_GPU"), reason="LLM_HUB_TEST_GPU is not set"),
]

MIB = 1 << 20
HELD = 300 * MIB

# Says which cards CUDA shows to this process, takes memory of the first, and keeps it until its input is closed. It speaks to the
# driver itself (libcuda), so that neither torch nor a toolkit has to be there.
HOLD = f"""
import ctypes, sys, uuid
cuda = ctypes.CDLL("libcuda.so.1")
def did(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{{name}} gave {{code}}")
did("cuInit", 0)
count = ctypes.c_int()
did("cuDeviceGetCount", ctypes.byref(count))
for ordinal in range(count.value):
    device, name = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    did("cuDeviceGet", ctypes.byref(device), ordinal)
    did("cuDeviceGetUuid_v2", name, device)
    print(f"GPU-{{uuid.UUID(bytes=bytes(name))}}", flush=True)
first, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
did("cuDeviceGet", ctypes.byref(first), 0)
did("cuDevicePrimaryCtxRetain", ctypes.byref(context), first)
did("cuCtxSetCurrent", context)
did("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t({HELD}))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(devices: Devices) -> Iterator[tuple[int, list[str]]]:
    """A process on these devices: its number, and the cards that CUDA shows it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, **devices.environment()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        lines: list[str] = []
        while (line := process.stdout.readline()) and line != "held\n":
            lines.append(line.strip())
        assert line == "held\n", f"CUDA did not give the memory (exit code {process.poll()})"
        yield process.pid, lines
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    found = read_inventory()
    assert found.gpus, found.reason
    return found


@pytest.fixture(scope="module")
def cards(inventory: Inventory) -> list[Gpu]:
    """The cards that a process can be put on as a whole."""
    found = [gpu for gpu in inventory.gpus if not (gpu.mig or gpu.problem or gpu.hidden_by)]
    if not found:
        pytest.skip("all cards here are divided by MIG, lost or hidden")
    return found


def assigned(name: int | str) -> Assignment:
    return Assignment(backend="held", gpus=(name,), source="llm-hub.toml:1")


def test_the_inventory_is_what_nvidia_smi_lists(inventory: Inventory) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("nvidia-smi is not here to compare with")
    asked = "--query-gpu=index,uuid,name,memory.total,pci.bus_id"
    done = subprocess.run(
        ["nvidia-smi", asked, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=60
    )
    listed = [[part.strip() for part in line.split(",")] for line in done.stdout.strip().splitlines()]
    assert [(str(gpu.index), gpu.uuid, gpu.name) for gpu in inventory.gpus] == [
        (row[0], row[1], row[2]) for row in listed
    ]
    for gpu, row in zip(inventory.gpus, listed, strict=True):
        assert gpu.pci == row[4].lower()
        if gpu.total is not None:  # unified memory is not told
            assert abs(gpu.total / MIB - float(row[3])) <= 1
            assert (gpu.free or 0) + (gpu.used or 0) <= gpu.total
    assert inventory.driver
    assert inventory.cuda


def test_a_uuid_pins_a_process_to_its_card_and_index_and_uuid_name_the_same(
    inventory: Inventory, cards: list[Gpu]
) -> None:
    for gpu in cards:
        by_index = resolve([assigned(gpu.index)], inventory)["held"]
        by_uuid = resolve([assigned(str(gpu.uuid))], inventory)["held"]
        assert by_index.devices == by_uuid.devices
        assert by_index.verified
        with holding(by_index.devices) as (pid, seen):
            assert seen == [gpu.uuid]
            now = read_inventory()
            (mine,) = [one for one in now.gpus if one.uuid == gpu.uuid]
            assert (mine.used or 0) >= HELD
            listed = {one.pid: one for one in mine.processes}
            if listed and pid in listed:  # the driver lists no processes to a container with process ids of its own
                assert (listed[pid].memory or HELD) >= HELD
                assert (listed[pid].name or "").startswith("python")


def test_the_truth_check_tells_the_right_card_from_the_wrong_one_and_from_none(
    inventory: Inventory, cards: list[Gpu]
) -> None:
    gpu = cards[-1]
    placed = resolve([assigned(gpu.index)], inventory)
    with holding(placed["held"].devices) as (pid, _):
        now = read_inventory()
        if not any(one.pid == pid for card in now.gpus for one in card.processes):
            pytest.skip("the driver lists no processes here, or by other numbers (a container, WSL)")
        seen = {"held": Seen(pids=frozenset({pid}))}
        assert not [one for one in compare(placed, now, seen) if one.level == "error"]
        nowhere = {"held": Seen(pids=frozenset({os.getpid()}))}
        assert [one.code for one in compare(placed, now, nowhere) if one.level == "error"] == ["not-on-gpu"]
        for other in cards[:-1]:
            wrong = compare(resolve([assigned(other.index)], now), now, seen)
            assert "wrong-gpu" in [one.code for one in wrong if one.level == "error"]
