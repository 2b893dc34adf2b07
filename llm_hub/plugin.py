"""One plugin that was loaded and found valid: its hooks, called, with whatever they raise brought into the tree of errors."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar, cast

import pluggy

from llm_hub import hookspecs
from llm_hub.capabilities import Backend, Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.discovery import Installed
from llm_hub.errors import HubError, PluginBroken, PluginError, PluginNotFound, SettingsError
from llm_hub.manifest import PluginManifest, check_api_version
from llm_hub.observers import Observer
from llm_hub.plugin_checks import (
    HOOKS,
    MANIFEST_HOOK,
    Fault,
    check_backend,
    check_hook,
    check_hooks,
    check_launch,
    check_manifest,
)
from llm_hub.quarantine import said, trace

if TYPE_CHECKING:
    from llm_hub.launch import Devices, LaunchSpec

__all__ = ["Plugin"]

T = TypeVar("T")


def _specs(names: Iterable[str]) -> types.ModuleType:
    module = types.ModuleType("llm_hub_specs")
    vars(module).update({name: getattr(hookspecs, name) for name in names})
    return module


_FIRST_SPEC = _specs([MANIFEST_HOOK])
_OTHER_SPECS = _specs(sorted(HOOKS - {MANIFEST_HOOK}))


class Plugin:
    """A plugin that was loaded and found valid. Its hooks reach it alone: it has a PluginManager of its own."""

    def __init__(self, found: Installed, subject: object) -> None:
        self.name = found.name
        self.installed = found
        if subject is None:
            raise Fault("its entry points name None", "Name a module, or an object with hooks.")
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._hook = manager.hook
        try:
            # The manifest comes first: hooks of another api version are not misspelt, they are of another api version.
            manager.add_hookspecs(_FIRST_SPEC)
            manager.register(subject, name=found.name)
            declared = self.declared() if check_hook(manager, subject, MANIFEST_HOOK) else None
            manager.add_hookspecs(_OTHER_SPECS)
            check_hooks(manager, subject, found.capabilities, observes=found.observes)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise Fault(f"its hooks are wrong: {' '.join(str(error).split())}", "Correct them.") from error
        assert declared is not None  # check_hooks has seen the hook
        check_manifest(declared)
        self.manifest = declared

    def declared(self) -> PluginManifest:
        """What its manifest hook says now. Raises Fault for what is no manifest, PluginIncompatible for its api version."""
        try:
            manifest = self._hook.llm_hub_manifest()
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise Fault(f"its manifest hook raised {said(error)}", "A manifest is plain data.") from error
        if not isinstance(manifest, PluginManifest):
            raise Fault(f"its manifest hook returned a {type(manifest).__name__}", "Return a PluginManifest.")
        check_api_version(self.name, manifest.api_version)
        return manifest

    def build(self, capability: Capability, config: BackendConfig, context: BuildContext) -> Backend | None:
        """A backend from this configuration, None if the plugin declines.

        Raises the plugin's HubError, PluginBroken for anything else that it raises or returns, and PluginNotFound if it
        does not offer the capability.
        """
        if capability not in self.installed.capabilities:
            offers = ", ".join(self.installed.offers)
            raise PluginNotFound(
                f"{self.installed.origin} offers {offers}, not {capability}",
                plugin=self.name,
                hint="`llm-hub plugins` lists what is installed and offers it.",
            )

        def build() -> Backend | None:
            built = getattr(self._hook, f"llm_hub_{capability}")(config=config, context=context)
            if built is not None:
                check_backend(built, capability)
            return cast("Backend | None", built)

        return self._for(config, "building", build)

    def launch(self, config: BackendConfig, devices: Devices) -> LaunchSpec | None:
        """How to run this backend as a process on these devices; None if it needs none, or the plugin does not say.

        Raises as `build` does.
        """

        def describe() -> LaunchSpec | None:
            spec = self._hook.llm_hub_launch(config=config, devices=devices)
            if spec is not None:
                check_launch(spec)
            return cast("LaunchSpec | None", spec)

        spec = self._for(config, "describing how to start", describe)
        if spec is not None and devices.gpus:
            _check_visible(config, spec)
        return spec

    def _for(self, config: BackendConfig, doing: str, build: Callable[[], T]) -> T:
        """`_built`, with the backend's name in the errors."""
        try:
            return self._built(f"{doing} {config.name!r}", build)
        except HubError as error:
            if error.backend is None and not isinstance(error, PluginError):
                error.backend = config.name
            raise

    def observer(self, context: BuildContext) -> Observer | None:
        """Its observer, None if it has nothing to observe. Raises as `build` does."""
        if not self.installed.observes:
            raise PluginNotFound(
                f"{self.installed.origin} offers {', '.join(self.installed.offers)}, not an observer",
                plugin=self.name,
                hint="Take it out of LLM_HUB_OBSERVERS; `llm-hub plugins` lists what is installed and offers it.",
            )

        def make() -> Observer | None:
            made = self._hook.llm_hub_observer(context=context)
            if made is not None and not callable(getattr(made, "observe", None)):
                raise Fault(f"the {type(made).__name__} that it made has no method observe", "Make it an Observer.")
            return cast("Observer | None", made)

        return self._built("making its observer", make)

    def _built(self, doing: str, build: Callable[[], T]) -> T:
        """What this makes of the plugin's own code. Its HubErrors pass; anything else that it raises is PluginBroken."""
        origin = self.installed.origin
        hint = f"This is a fault of the plugin, not of the settings: upgrade it (pip install -U {self.installed.distribution}) or report it."
        try:
            return build()
        except HubError:
            raise
        except Fault as fault:
            raise PluginBroken(
                f"{origin}: {fault.message}", plugin=self.name, hint=f"{fault.hint} {hint}"
            ) from fault.__cause__
        except (Exception, SystemExit) as error:
            raise PluginBroken(
                f"{origin}: {doing} raised {said(error)}",
                plugin=self.name,
                details=trace(error),
                hint=hint,
            ) from error


def _check_visible(config: BackendConfig, spec: LaunchSpec) -> None:
    """Raise SettingsError where the environment of a backend would put it on other GPUs than the plan."""
    given = {*spec.environment, *(spec.container.environment if spec.container is not None else ())}
    for name in sorted(given & {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}):
        raise SettingsError(
            f"the environment that {config.name!r} is started with sets {name}, and the plan says which GPUs it sees",
            where=config.source,
            hint=f"Take it out, or take [gpu.assign.{config.name}] out.",
        )
