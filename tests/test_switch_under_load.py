"""The benchmark of switching under load, in small: nothing is lost, and every process follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "switch_under_load.py"


@pytest.mark.parametrize(("servers", "calls"), [((), 400), (("--real",), 200)], ids=["fake", "llama.cpp"])
def test_no_call_is_lost_when_backends_are_switched_rolled_back_killed_and_restarted(
    servers: tuple[str, ...], calls: int
) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--json",
        f"--calls={calls}",
        "--processes=2",
        "--callers=4",
        "--switches=8",
    ]
    done = subprocess.run([*command, *servers], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["calls"] == calls
    assert found["streams"] + found["streams_broken_by_the_kill"] == calls // 2
    assert found["failed_that_a_retry_could_have_saved"] == 0, found["examples"]
    assert found["streams_broken_otherwise"] == 0, found["examples"]
    assert found["wrong"] == 0, found["examples"]
    assert found["switches"] == 8
    assert found["served_by_fallback"] > 0, "one backend was dead for a while"
    assert found["ms_until_all_are_on_the_new_epoch"]["most"] < 5000
