"""How vLLM is started: options for its GPUs and its model, and no key in any command."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, Secret
from llm_hub.errors import SettingsError
from llm_hub.launch import API_KEY, Device, Devices, LaunchSpec
from llm_hub_vllm.plugin import llm_hub_launch
from llm_hub_vllm.settings import Launch, VLLMSettings

GIB = 1 << 30
ONE = Devices(gpus=(Device(id="GPU-1", total=24 * GIB),))


def described(devices: Devices = ONE, *, key: str | None = None, embeds: bool = False, **how: Any) -> LaunchSpec:
    models = {Capability.EMBEDDING if embeds else Capability.TEXT: "org/model"}
    options = VLLMSettings(launch=Launch(**how))
    api_key = None if key is None else Secret(key)
    return llm_hub_launch(
        BackendConfig(name="v", plugin="vllm", models=models, options=options, api_key=api_key), devices
    )


def option(spec: LaunchSpec, name: str) -> str | None:
    return spec.command[spec.command.index(name) + 1] if name in spec.command else None


def test_it_serves_its_model_where_it_is_told_to_and_drains_before_it_is_killed() -> None:
    spec = described().listening("127.0.0.1", 8123)
    assert spec.command[:7] == ("vllm", "serve", "org/model", "--host", "127.0.0.1", "--port", "8123")
    assert option(spec, "--shutdown-timeout") == "30"
    assert spec.stop_grace > 30
    assert spec.health_path == "/health"
    assert spec.container is not None
    assert spec.container.image == "vllm/vllm-openai:v0.32.0"
    assert spec.container.command[:5] == ("org/model", "--host", "0.0.0.0", "--port", "8000")


def test_several_gpus_are_tensor_parallel_and_one_is_not() -> None:
    two = Devices(gpus=(Device(id="GPU-1"), Device(id="GPU-2")))
    assert option(described(two), "--tensor-parallel-size") == "2"
    assert "--tensor-parallel-size" not in described().command


@pytest.mark.parametrize(
    ("memory", "share"), [(0.5, "0.5"), (12 * GIB, "0.5"), (20 * GIB, "0.8333"), (99 * GIB, "1"), (None, None)]
)
def test_memory_becomes_the_share_that_vllm_takes(memory: float | None, share: str | None) -> None:
    devices = msgspec.structs.replace(ONE, memory=memory)
    assert option(described(devices), "--gpu-memory-utilization") == share


def test_an_amount_of_a_gpu_of_unknown_size_is_no_share() -> None:
    with pytest.raises(SettingsError, match=r"write a fraction: \[gpu.assign.v\] memory = 0.9"):
        described(Devices(gpus=(Device(id="1"),), memory=20 * GIB))


def test_a_backend_that_embeds_is_a_pooling_server() -> None:
    assert option(described(embeds=True), "--runner") == "pooling"


def test_the_key_is_in_no_command_and_stands_for_itself_in_the_environment() -> None:
    spec = described(key="sesame-4711")
    assert spec.environment["VLLM_API_KEY"] == API_KEY
    assert "sesame" not in repr(spec)
    assert "vLLM asks for no key" in described().notes[0]
    with pytest.raises(ValueError, match="set api_key_env"):
        Launch(args=("--api-key=x",))
    with pytest.raises(ValueError, match="set api_key_env"):
        Launch(args=("--api_key", "x"))  # which vLLM takes, too


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--port", "9999"), "--port, because it listens where base_url says"),
        (("--host=0.0.0.0",), "--host, because"),
        (("--shutdown_timeout", "300"), "--shutdown-timeout, .* set drain"),
    ],
)
def test_what_the_hub_itself_decides_is_not_said_otherwise_behind_its_back(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Launch(args=args)


def test_what_one_process_cannot_serve_is_refused() -> None:
    for models in (
        {},
        {Capability.TEXT: "a", Capability.VISION: "b"},
        {Capability.TEXT: "a", Capability.EMBEDDING: "a"},
    ):
        config = BackendConfig(name="v", plugin="vllm", models=models, options=VLLMSettings(), source="llm-hub.toml:1")
        with pytest.raises(SettingsError, match="'v'"):
            llm_hub_launch(config, Devices())


def test_the_rest_is_passed_on() -> None:
    spec = described(
        model="/weights", max_model_len=8192, tool_call_parser="hermes", args=("--enforce-eager",), drain=5
    )
    assert spec.command[2] == "/weights"
    assert option(spec, "--served-model-name") == "org/model"
    assert option(spec, "--max-model-len") == "8192"
    assert option(spec, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in spec.command
    assert spec.command[-1] == "--enforce-eager"
    assert spec.stop_grace == 20


@pytest.mark.parametrize(
    ("args", "devices", "needs"),
    [
        ((), 0, {"share": 0.92, "tensor_parallel": 1, "gpus": None, "context": None}),
        ((), 2, {"share": 0.92, "tensor_parallel": 2, "gpus": 2}),
        (("-tp", "4"), 2, {"tensor_parallel": 4, "gpus": 4}),
        (("--tensor-parallel-size=2", "--pipeline-parallel-size", "2"), 0, {"tensor_parallel": 2, "gpus": 4}),
        (("--gpu-memory-utilization", "0.5", "--max-model-len=32k"), 1, {"share": 0.5, "context": 32_000}),
        (("--max-model-len", "1M"), 1, {"context": 1 << 20}),
        (("--gpu-memory-utilization", "much"), 1, {"share": 0.92}),
        (("-tp",), 1, {"tensor_parallel": 1}),
        (("--gpu_memory_utilization=0.4", "--max_model_len", "8k"), 1, {"share": 0.4, "context": 8_000}),
    ],
)
def test_what_it_asks_of_its_gpus_is_read_from_the_command_itself(
    args: tuple[str, ...], devices: int, needs: dict[str, Any]
) -> None:
    gpus = tuple(Device(id=f"GPU-{at}", total=24 << 30) for at in range(devices))
    asked = described(Devices(gpus=gpus), model="/weights", args=args).needs
    assert asked.split == "tensor"
    assert asked.models == ("/weights",)
    assert {name: getattr(asked, name) for name in needs} == needs


def test_what_the_plan_gives_it_is_what_it_asks_for() -> None:
    devices = Devices(gpus=(Device(id="GPU-1", total=24 << 30),), memory=12 << 30)
    assert described(devices).needs.share == 0.5
    assert described(devices, kv_cache_dtype="fp8_e4m3").needs.kv_bytes == 1
