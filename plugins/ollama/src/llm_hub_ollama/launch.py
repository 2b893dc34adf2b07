"""How to start Ollama: `ollama serve`, with its settings in the environment."""

from __future__ import annotations

import shlex

from llm_hub.config import BackendConfig
from llm_hub.errors import SettingsError
from llm_hub.launch import Container, Devices, GpuNeeds, LaunchSpec, Volume
from llm_hub_ollama.settings import OllamaSettings

__all__ = ["launch"]


_PORT = 11434
_GIB = 1 << 30
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # bytes of a block, and its numbers


def launch(config: BackendConfig, settings: OllamaSettings, devices: Devices) -> LaunchSpec:
    """The server of this backend on these GPUs. The variables are those of Ollama's envconfig/config.go."""
    how = settings.launch
    models = tuple(dict.fromkeys(config.models.values()))
    if config.api_key is not None:
        raise SettingsError(
            f"Ollama has no keys, and the backend {config.name!r} has one, so that something must stand before it",
            where=config.source,
            hint="Start that and Ollama yourself, or take the key out.",
        )
    environment = {
        # What was put on a GPU stays there: its memory is counted on, and nobody waits for a model to load again.
        "OLLAMA_KEEP_ALIVE": _duration(settings.keep_alive) if settings.keep_alive is not None else "-1",
        "OLLAMA_MAX_LOADED_MODELS": str(how.max_loaded_models or max(1, len(models))),
    }
    if len(devices) > 1:
        environment["OLLAMA_SCHED_SPREAD"] = "1"
    for name, value in (
        ("OLLAMA_NUM_PARALLEL", how.num_parallel),
        ("OLLAMA_MAX_QUEUE", how.max_queue),
        ("OLLAMA_CONTEXT_LENGTH", settings.num_ctx),
        ("OLLAMA_KV_CACHE_TYPE", how.kv_cache_type),
        ("OLLAMA_FLASH_ATTENTION", None if how.flash_attention is None else int(how.flash_attention)),
    ):
        if value is not None:
            environment[name] = str(value)
    environment.update(how.environment)
    notes = []
    if devices.memory is not None:
        notes.append("Ollama knows no limit of GPU memory: `memory` is what the plan counts on, and is only checked")
    return LaunchSpec(
        command=("ollama", "serve"),
        environment={"OLLAMA_HOST": "{address}", **environment},
        health_path="/api/version",
        devices=devices,
        container=Container(
            image=how.image,
            command=("serve",),
            port=_PORT,
            health=("CMD", "ollama", "list"),  # the image has neither curl nor Python
            environment={"OLLAMA_HOST": f"0.0.0.0:{_PORT}", **environment},
            volumes=(Volume(name="ollama-models", path="/root/.ollama"),),
            fetch=" && ".join(f"ollama pull {shlex.quote(model)}" for model in models) or None,
        ),
        models=models,
        fetch=tuple(("ollama", "pull", model) for model in models),
        drain=how.drain,
        stop_grace=how.drain + 10,
        start_timeout=how.start_timeout,
        notes=tuple(notes),
        needs=GpuNeeds(
            models=models,
            context=settings.num_ctx or _default_context(devices),
            parallel=how.num_parallel or 1,
            kv_bytes=_KV_BYTES.get(how.kv_cache_type or "f16", 2.0),
            on_cpu=settings.num_gpu == 0,
        ),
    )


def _default_context(devices: Devices) -> int:
    """The context for which nothing is set, by the memory of all its GPUs (server/routes.go of Ollama)."""
    total = sum(gpu.total or 0 for gpu in devices.gpus)
    return 262144 if total >= 47 * _GIB else 32768 if total >= 23 * _GIB else 4096


def _duration(keep_alive: float | str) -> str:
    return keep_alive.strip() if isinstance(keep_alive, str) else f"{keep_alive:g}"
