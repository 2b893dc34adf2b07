"""Public fakes: recorded, live and misbehaving servers, for the tests of the hub, of plugins and of services."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; see llm_hub/__init__.py
if TYPE_CHECKING:
    from typing import Any

    from llm_hub.testing.distributions import install_distribution as install_distribution
    from llm_hub.testing.distributions import make_wheel as make_wheel
    from llm_hub.testing.environments import PluginEnvironment as PluginEnvironment
    from llm_hub.testing.environments import PluginFolder as PluginFolder
    from llm_hub.testing.exchange import Close as Close
    from llm_hub.testing.exchange import Hang as Hang
    from llm_hub.testing.exchange import Pause as Pause
    from llm_hub.testing.exchange import Reply as Reply
    from llm_hub.testing.exchange import Request as Request
    from llm_hub.testing.exchange import Reset as Reset
    from llm_hub.testing.exchange import Script as Script
    from llm_hub.testing.faults import ActiveFault as ActiveFault
    from llm_hub.testing.faults import Fault as Fault
    from llm_hub.testing.imports import ImportBudget as ImportBudget
    from llm_hub.testing.imports import import_report as import_report
    from llm_hub.testing.live import FakeModel as FakeModel
    from llm_hub.testing.live import Speed as Speed
    from llm_hub.testing.model import Called as Called
    from llm_hub.testing.model import Generation as Generation
    from llm_hub.testing.model import Prompt as Prompt
    from llm_hub.testing.model import TinyModel as TinyModel
    from llm_hub.testing.model import Turn as Turn
    from llm_hub.testing.ollama import FakeOllama as FakeOllama
    from llm_hub.testing.pictures import draw as draw
    from llm_hub.testing.proxy import RecordingProxy as RecordingProxy
    from llm_hub.testing.puppets import Puppet as Puppet
    from llm_hub.testing.recordings import Recording as Recording
    from llm_hub.testing.recordings import load as load
    from llm_hub.testing.recordings import load_folder as load_folder
    from llm_hub.testing.recordings import save as save
    from llm_hub.testing.replay import ReplayServer as ReplayServer
    from llm_hub.testing.secret_settings import plain_secrets as plain_secrets
    from llm_hub.testing.server import FakeServer as FakeServer
    from llm_hub.testing.vllm import FakeVLLM as FakeVLLM
    from llm_hub.testing.wire_form import WireForm as WireForm

_HOME = {
    "ActiveFault": "faults",
    "Called": "model",
    "Close": "exchange",
    "FakeModel": "live",
    "FakeOllama": "ollama",
    "FakeServer": "server",
    "FakeVLLM": "vllm",
    "Fault": "faults",
    "Generation": "model",
    "Hang": "exchange",
    "ImportBudget": "imports",
    "Pause": "exchange",
    "PluginEnvironment": "environments",
    "PluginFolder": "environments",
    "Prompt": "model",
    "Puppet": "puppets",
    "Recording": "recordings",
    "RecordingProxy": "proxy",
    "ReplayServer": "replay",
    "Reply": "exchange",
    "Request": "exchange",
    "Reset": "exchange",
    "Script": "exchange",
    "Speed": "live",
    "TinyModel": "model",
    "Turn": "model",
    "WireForm": "wire_form",
    "draw": "pictures",
    "import_report": "imports",
    "install_distribution": "distributions",
    "load": "recordings",
    "load_folder": "recordings",
    "make_wheel": "distributions",
    "plain_secrets": "secret_settings",
    "save": "recordings",
}

__all__ = [
    "ActiveFault",
    "Called",
    "Close",
    "FakeModel",
    "FakeOllama",
    "FakeServer",
    "FakeVLLM",
    "Fault",
    "Generation",
    "Hang",
    "ImportBudget",
    "Pause",
    "PluginEnvironment",
    "PluginFolder",
    "Prompt",
    "Puppet",
    "Recording",
    "RecordingProxy",
    "ReplayServer",
    "Reply",
    "Request",
    "Reset",
    "Script",
    "Speed",
    "TinyModel",
    "Turn",
    "WireForm",
    "draw",
    "import_report",
    "install_distribution",
    "load",
    "load_folder",
    "make_wheel",
    "plain_secrets",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'llm_hub.testing' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"llm_hub.testing.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
