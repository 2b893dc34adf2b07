"""`llm-hub gpus`, `plan` and `explain` on stand-in machines: what a person sees, what a program reads, the exit codes."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm_hub.cli import cli
from llm_hub.testing import FakeOllama
from llm_hub.testing.nvml import NoCompiler, StandInDriver, StandInGpu, StandInProcess

GIB = 1 << 30
A, B = "GPU-aaaa0000-1111", "GPU-bbbb0000-1111"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
BACKENDS = """\
[backends.vllm]
base_url = "http://127.0.0.1:9"
models = { text = "meta-llama/Llama-3.1-8B-Instruct" }
launch = { max_model_len = 16384 }
[backends.llamacpp]
base_url = "http://127.0.0.1:10"
models = { vision = "TINY" }
"""
TINY = Path(__file__).parent / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> StandInDriver:
    try:
        return StandInDriver(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def machine(driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    """Two cards of 24 GiB, and the description of one model in the cache."""
    for name in [
        name for name in os.environ if name.startswith(("LLM_", "OLLAMA_", "VLLM_", "HF_", "CUDA_", "NVIDIA_"))
    ]:
        monkeypatch.delenv(name)
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLM_HUB_STATE", str(tmp_path / "control.json"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub" / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    driver.describe(
        [
            StandInGpu(uuid=A, used=GIB, processes=(StandInProcess(pid=2**22 + 5, memory=GIB),)),
            StandInGpu(uuid=B),
        ]
    )
    return driver


def wrote(text: str) -> None:
    Path("llm-hub.toml").write_text(BACKENDS.replace("TINY", str(TINY)) + text)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def loaded(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


ASSIGNED = f"""\
[gpu.assign.vllm]
capabilities = ["text"]
gpus = [1]
memory = "20GiB"
[gpu.assign.llamacpp]
gpus = ["{A}"]
"""


def test_gpus_lists_cards_with_their_users_and_claims(machine: StandInDriver) -> None:
    wrote(ASSIGNED)
    first, second = run("gpus").stdout.splitlines()[1:3]
    for part in ("0", A, "22.5 GiB", "24.0 GiB", f"process-{2**22 + 5} (pid {2**22 + 5}, 1.0 GiB)", "llamacpp"):
        assert part in first
    assert second.split()[-1] == "vllm"
    found = loaded("gpus")
    assert [gpu["uuid"] for gpu in found["gpus"]] == [A, B]
    assert found["claims"] == {A: ["llamacpp"], B: ["vllm"]}
    wrote("[gpu.assign.nobody")  # settings that are wrong do not keep anybody from looking at the cards
    assert A in run("gpus").stdout


def test_gpus_says_why_there_are_none(machine: StandInDriver) -> None:
    machine.describe(init=18)
    assert "No GPU: the NVIDIA driver in the kernel and its library are of different versions" in run("gpus").stdout
    assert loaded("gpus")["gpus"] == []


def test_plan_shows_the_memory_of_each_gpu_and_that_it_fits(machine: StandInDriver) -> None:
    wrote(ASSIGNED)
    output = run("plan").stdout
    head, zero, one = output.splitlines()[:3]
    assert head.split() == ["total", "others", "vllm", "llamacpp", "headroom", "left"]
    assert zero.split()[:8] == ["GPU", "0", "24.0", "GiB", "1.5", "GiB", "-", "~"]
    assert one.split() == ["GPU", "1", *["24.0", "GiB", "0.5", "GiB", "20.0", "GiB", "-", "0.5", "GiB", "3.0", "GiB"]]
    assert f"vllm for text on GPU 1 ({B})" in output
    assert "17.7 GiB = weights 15.0 GiB + cache 2.0 GiB (1 x 16,384 tokens) + 0.8 GiB beside" in output
    assert "The plan can be carried out (checked against the driver)." in output
    found = loaded("plan")
    assert (found["usable"], found["verified"]) == (True, True)
    assert found["plan"]["placements"]["vllm"]["devices"]["gpus"] == [{"id": B, "total": 24 * GIB}]


def test_plan_fails_with_the_line_and_the_fix(machine: StandInDriver) -> None:
    wrote(ASSIGNED.replace('"20GiB"', "0.99"))
    output = run("plan", code=1).stdout
    assert "llm-hub.toml:11: vllm takes 23.8 GiB of GPU 1" in output
    assert "fix: Set memory = 0.95 in [gpu.assign.vllm]" in output
    assert "1 thing to mend." in output
    (finding,) = loaded("plan", code=1)["plan"]["findings"]
    assert (finding["code"], finding["where"]) == ("share", "llm-hub.toml:11")


def test_the_arguments_of_the_server_itself_are_counted(machine: StandInDriver) -> None:
    wrote(ASSIGNED)
    text = Path("llm-hub.toml").read_text()
    changed = 'max_model_len = 16384, args = ["-tp", "2", "--gpu-memory-utilization=0.5"]'
    Path("llm-hub.toml").write_text(text.replace("max_model_len = 16384", changed))
    codes = {one["code"] for one in loaded("plan", code=1)["plan"]["findings"]}
    assert codes == {"parallel-count", "too-small"}


def test_a_server_that_runs_is_asked_for_what_is_not_here(machine: StandInDriver) -> None:
    with FakeOllama() as server:
        Path("llm-hub.toml").write_text(
            f'[backends.ollama]\nbase_url = "{server.url}"\nmodels = {{ text = "hub-test-vlm" }}\n'
            "[gpu.assign.ollama]\ngpus = [0]\n"
        )
        estimate = loaded("plan")["plan"]["placements"]["ollama"]["models"]["hub-test-vlm"]
        # 5 layers, keys and values of 384 numbers each, 16 bits: as its header says.
        assert estimate["kv_cache"] == 5 * 2 * 384 * 2 * estimate["context"]
        assert not server.loads
        (unknown,) = loaded("plan", "--offline")["plan"]["findings"]
        assert unknown["code"] == "memory-unknown"
        assert "Fetch it: ollama pull hub-test-vlm" in unknown["fix"]


def test_a_proposal_can_be_pasted_and_then_passes(machine: StandInDriver) -> None:
    wrote("")
    assert "To have it proposed: llm-hub plan --propose" in run("plan").stdout
    proposed = run("plan", "--propose").stdout
    assert proposed == run("plan", "--propose").stdout
    assigned = tomllib.loads(proposed)["gpu"]["assign"]
    assert assigned["vllm"] == {"capabilities": ["text"], "gpus": [B], "memory": "22.0 GiB"}
    assert assigned["llamacpp"]["gpus"] == [A]
    wrote(proposed)
    assert loaded("plan")["plan"].get("findings", []) == []


def test_what_has_no_place_is_told_beside_the_output(machine: StandInDriver) -> None:
    wrote("")
    machine.describe([StandInGpu(uuid=A, total=12 * GIB)])
    result = run("plan", "--propose", code=1)
    assert tomllib.loads(result.stdout)["gpu"]["assign"].keys() == {"llamacpp"}
    assert "vllm has no place: it needs 18.0 GiB, and the most that is left is" in result.stderr
    assert "would do: a GPU with 18.0 GiB free" in result.stderr
    assert loaded("plan", "--propose", code=1)["complete"] is False


def test_planning_for_another_machine_from_its_inventory(machine: StandInDriver, tmp_path: Path) -> None:
    wrote(ASSIGNED)
    (tmp_path / "gpus.json").write_text(run("gpus", "--json").stdout)
    machine.describe()
    believed = run("plan").stdout
    assert "No GPU is seen here: the driver lists no GPU." in believed
    assert "vllm for text on GPU (1), unverified" in believed
    assert "believed, not verified" in believed
    assert "checked against the driver" in run("plan", "--inventory", "gpus.json").stdout
    assert tomllib.loads(run("plan", "--propose", "--inventory", "gpus.json").stdout)["gpu"]["assign"]["vllm"][
        "gpus"
    ] == [B]
    nowhere = run("plan", "--propose", code=1)
    assert "No GPU is seen here: the driver lists no GPU. To plan for another machine" in nowhere.stderr
    (tmp_path / "gpus.json").write_text("[")
    wrong = CliRunner().invoke(cli, ["plan", "--inventory", "gpus.json"])
    assert "gpus.json: it is no inventory" in str(wrong.exception)


def test_explain_shows_the_gpus_and_whether_they_were_seen(machine: StandInDriver) -> None:
    wrote(ASSIGNED)
    assert f"on GPU 1 = {B} (llm-hub.toml:8), verified: the driver here knows it" in run("explain", "text").stdout
    found = loaded("explain", "text")
    assert (found["backend"], found["rule"], found["gpus"]) == ("vllm", 6, [1])
    assert found["placement"] == {"gpus": [B], "verified": True}
    machine.describe(init=9)
    said = run("explain", "text").stdout
    assert "on GPU 1 (llm-hub.toml:8), believed, unverified: the NVIDIA driver is installed but not loaded" in said
    wrote("[routes]\ntext = ['vllm']\n")
    assert loaded("explain", "text")["placement"] is None
