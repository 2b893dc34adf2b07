"""How Ollama is started: everything is in its environment."""

from __future__ import annotations

from typing import Any

import pytest

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, Secret
from llm_hub.errors import SettingsError
from llm_hub.launch import Device, Devices, LaunchSpec
from llm_hub_ollama.plugin import llm_hub_launch
from llm_hub_ollama.settings import Launch, OllamaSettings

MODELS = {Capability.VISION: "llava:7b", Capability.EMBEDDING: "nomic-embed-text"}


NONE = Devices()


def described(devices: Devices = NONE, **options: Any) -> LaunchSpec:
    return llm_hub_launch(
        BackendConfig(name="o", plugin="ollama", models=MODELS, options=OllamaSettings(**options)), devices
    )


def test_it_listens_where_it_is_told_to_and_keeps_its_models_in_memory() -> None:
    spec = described().listening("127.0.0.1", 11500)
    assert spec.command == ("ollama", "serve")
    assert spec.environment["OLLAMA_HOST"] == "127.0.0.1:11500"
    assert described().listening("::1", 11434).environment["OLLAMA_HOST"] == "[::1]:11434"
    assert spec.environment["OLLAMA_KEEP_ALIVE"] == "-1"
    assert spec.environment["OLLAMA_MAX_LOADED_MODELS"] == "2"
    assert spec.models == ("llava:7b", "nomic-embed-text")
    assert spec.fetch == (("ollama", "pull", "llava:7b"), ("ollama", "pull", "nomic-embed-text"))


def test_its_settings_become_its_variables() -> None:
    spec = described(keep_alive="10m", num_ctx=8192, launch=Launch(num_parallel=4, flash_attention=True))
    assert spec.environment["OLLAMA_KEEP_ALIVE"] == "10m"
    assert spec.environment["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert spec.environment["OLLAMA_NUM_PARALLEL"] == "4"
    assert spec.environment["OLLAMA_FLASH_ATTENTION"] == "1"
    assert "OLLAMA_SCHED_SPREAD" not in spec.environment


def test_it_spreads_over_several_gpus_and_says_that_memory_is_no_limit() -> None:
    spec = described(Devices(gpus=(Device(id="GPU-1"), Device(id="GPU-2")), memory=0.5))
    assert spec.environment["OLLAMA_SCHED_SPREAD"] == "1"
    assert "no limit of GPU memory" in spec.notes[0]
    assert spec.devices.environment() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}


def test_its_container_asks_after_itself_with_what_the_image_has() -> None:
    container = described().container
    assert container is not None
    assert container.image == "ollama/ollama:0.32.15"
    assert container.health == ("CMD", "ollama", "list")
    assert container.fetch == "ollama pull llava:7b && ollama pull nomic-embed-text"


def test_a_key_is_refused_because_ollama_has_none() -> None:
    config = BackendConfig(name="o", plugin="ollama", api_key=Secret("k"), options=OllamaSettings())
    with pytest.raises(SettingsError, match="Ollama has no keys"):
        llm_hub_launch(config, Devices())


def test_what_it_asks_of_its_gpus_follows_their_memory_as_its_context_does() -> None:
    def context(*gigabytes: int) -> int | None:
        gpus = tuple(Device(id=f"GPU-{at}", total=size << 30) for at, size in enumerate(gigabytes))
        return described(Devices(gpus=gpus)).needs.context

    assert (context(), context(16), context(24), context(24, 24), context(80)) == (4096, 4096, 32768, 262144, 262144)
    assert described().needs.models == ("llava:7b", "nomic-embed-text")
