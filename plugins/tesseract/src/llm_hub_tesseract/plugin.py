"""The hooks of the tesseract plugin."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from llm_hub.capabilities import Capability, Feature
from llm_hub.errors import SettingsError
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest
from llm_hub_tesseract.settings import TesseractSettings

if TYPE_CHECKING:
    from llm_hub.capabilities import VisionBackend
    from llm_hub.config import BackendConfig, BuildContext

__all__ = ["MODEL", "llm_hub_manifest", "llm_hub_vision"]

MODEL = "tesseract"


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What this plugin is."""
    return PluginManifest(
        api_version="1.0",
        summary="Tesseract in the process: reads the text on images, and describes nothing",
        features=frozenset({Feature.READ}),
        settings=TesseractSettings,
        default_models={Capability.VISION: MODEL},
        gpu="none",
    )


@hookimpl
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> VisionBackend:
    """A backend that reads. Tesseract itself is imported when it first does. Raises SettingsError for wrong options."""
    from llm_hub.engine import EngineBackend
    from llm_hub_tesseract.engine import TesseractEngine

    settings = _settings(config)
    workers = settings.workers or min(4, os.cpu_count() or 1)
    return EngineBackend(
        TesseractEngine(settings, workers=workers), name=config.name, workers=workers, queue=settings.queue
    )


def _settings(config: BackendConfig) -> TesseractSettings:
    if isinstance(config.options, TesseractSettings):
        return config.options
    try:
        return msgspec.convert(config.options, TesseractSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the options of the backend {config.name!r}: {error}", where=config.source) from error
