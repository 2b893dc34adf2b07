"""How to start vLLM: `vllm serve MODEL` with the options of the plan."""

from __future__ import annotations

import json

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.errors import SettingsError
from llm_hub.launch import API_KEY, Container, Devices, GpuNeeds, LaunchSpec, Volume
from llm_hub_vllm.settings import VLLMSettings, option

__all__ = ["launch"]


_PORT = 8000
_SCALES = {"k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20}  # human_readable_int of vllm/engine/arg_utils.py
_DEFAULT_SHARE = 0.92  # gpu_memory_utilization of vllm/config/cache.py


def launch(config: BackendConfig, settings: VLLMSettings, devices: Devices) -> LaunchSpec:
    """The server of this backend on these GPUs. The options are those of `vllm serve` 0.32 (`--shutdown-timeout` is of 0.18)."""
    how = settings.launch
    model = _model(config)
    options = _options(config, settings, devices, model)
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if config.api_key is not None:
        environment["VLLM_API_KEY"] = API_KEY  # `--api-key` would show it to all who list processes
    environment.update(how.environment)
    weights = how.model or model
    return LaunchSpec(
        command=("vllm", "serve", weights, "--host", "{host}", "--port", "{port}", *options),
        environment=environment,
        health_path="/health",
        devices=devices,
        container=Container(
            image=how.image,
            entrypoint=("vllm", "serve"),
            command=(weights, "--host", "0.0.0.0", "--port", str(_PORT), *options),  # noqa: S104 (inside a container)
            port=_PORT,
            health=(
                "CMD",
                "python3",
                "-c",
                "import urllib.request as r; r.urlopen('{health}', timeout=4)",
            ),
            environment={**environment, "HF_TOKEN": "${HF_TOKEN:-}"},
            volumes=(Volume(name="huggingface", path="/root/.cache/huggingface"),),
            shared_memory=how.shared_memory,
        ),
        models=(model,),
        drain=how.drain,
        stop_grace=how.drain + 15,
        start_timeout=how.start_timeout,
        needs=_needs(settings, options, weights, devices),
        notes=(
            ()
            if config.api_key is not None
            else ("vLLM asks for no key: set api_key_env, unless nobody else reaches it",)
        ),
    )


def _model(config: BackendConfig) -> str:
    names = tuple(dict.fromkeys(config.models.values()))
    chats = [one for one in config.models if one is not Capability.EMBEDDING]
    if not names:
        raise SettingsError(
            f"the backend {config.name!r} names no model, and vLLM is started with one",
            where=config.source,
            hint=f'Set models = {{ text = "org/model" }} in [backends.{config.name}].',
        )
    if len(names) > 1 or (chats and Capability.EMBEDDING in config.models):
        raise SettingsError(
            f"one vLLM process serves one model, for chats or for embeddings, and {config.name!r} has "
            + ", ".join(f"{name} for {capability}" for capability, name in config.models.items()),
            where=config.source,
            hint='Define a backend for each: [backends.vllm-embed] plugin = "vllm", each with its own base_url.',
        )
    return names[0]


def _options(config: BackendConfig, settings: VLLMSettings, devices: Devices, model: str) -> list[str]:
    how = settings.launch
    options: list[str] = []
    if how.model is not None:
        options += ["--served-model-name", model]
    if Capability.EMBEDDING in config.models:
        options += ["--runner", "pooling"]
    if len(devices) > 1:
        options += ["--tensor-parallel-size", str(len(devices))]
    if (share := _share(config, devices)) is not None:
        options += ["--gpu-memory-utilization", f"{share:g}"]
    for name, value in (
        ("--max-model-len", how.max_model_len),
        ("--max-num-seqs", how.max_num_seqs),
        ("--dtype", how.dtype),
        ("--quantization", how.quantization),
        ("--kv-cache-dtype", how.kv_cache_dtype),
        ("--reasoning-parser", how.reasoning_parser),
    ):
        if value is not None:
            options += [name, str(value)]
    if how.tool_call_parser is not None:
        options += ["--enable-auto-tool-choice", "--tool-call-parser", how.tool_call_parser]
    if Capability.VISION in config.models and how.max_images is not None:
        options += ["--limit-mm-per-prompt", json.dumps({"image": how.max_images}, separators=(",", ":"))]
    options += ["--shutdown-timeout", f"{how.drain:.0f}"]
    return [*options, *how.args]


def _needs(settings: VLLMSettings, options: list[str], weights: str, devices: Devices) -> GpuNeeds:
    """Read from the command itself, because `args` may say otherwise than the plan: the last one counts."""
    tensor = int(_number(options, 1, "--tensor-parallel-size", "-tp"))
    pipeline = int(_number(options, 1, "--pipeline-parallel-size", "-pp"))
    data = int(_number(options, 1, "--data-parallel-size", "-dp"))
    length = _number(options, 0, "--max-model-len")
    world = tensor * pipeline * data
    return GpuNeeds(
        share=_number(options, _DEFAULT_SHARE, "--gpu-memory-utilization"),
        split="tensor",
        tensor_parallel=tensor,
        gpus=world if devices.gpus or world > 1 else None,  # not assigned yet: as many as it will be given
        models=(weights,),
        context=int(length) or None,
        kv_bytes=1.0 if (settings.launch.kv_cache_dtype or "").startswith("fp8") else 2.0,
    )


def _number(options: list[str], default: float, *names: str) -> float:
    """The value of an option, `--name 2`, `--name=2` or `--name 32k`; the default where it is not there, or is no number."""
    found = default
    for at, word in enumerate(options):
        _, given, value = word.partition("=")
        if option(word) in names and (given or at + 1 < len(options)):
            text = value if given else options[at + 1]
            scale = _SCALES.get(text[-1:], 1)
            try:
                found = float(text[:-1] if scale > 1 else text) * scale
            except ValueError:
                found = default  # vLLM itself says what is wrong with it
    return found


def _share(config: BackendConfig, devices: Devices) -> float | None:
    """The share of each GPU, which is all that vLLM can be told."""
    share = devices.fraction()
    if share is None and devices.memory is not None:
        raise SettingsError(
            f"vLLM takes a share of its GPU's memory, and how much that has is not known here, so that the amount for "
            f"{config.name!r} cannot be converted",
            where=config.source,
            hint="Do this on the machine that has the GPU, or with its --inventory FILE (made there: llm-hub gpus --json), or write "
            f"a fraction: [gpu.assign.{config.name}] memory = 0.9",
        )
    return share
