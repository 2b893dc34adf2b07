"""What a plugin must be like: its object and hooks, its manifest, and the backends that it builds."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pluggy

from llm_hub import hookspecs
from llm_hub.capabilities import Backend, Capability, EmbeddingBackend, Feature, ReadingBackend, TextBackend
from llm_hub.launch import API_KEY, GpuNeeds, LaunchSpec, is_pinned
from llm_hub.manifest import KnownBad, PluginManifest

__all__ = [
    "HOOKS",
    "MANIFEST_HOOK",
    "Fault",
    "check_backend",
    "check_hook",
    "check_hooks",
    "check_launch",
    "check_manifest",
]

HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("llm_hub_"))
"""The names of all hooks."""

MANIFEST_HOOK = "llm_hub_manifest"
"""The hook that every plugin must have."""

_PROTOCOLS: Mapping[Capability, Mapping[Feature | None, type]] = {
    Capability.TEXT: {None: TextBackend},
    Capability.EMBEDDING: {None: EmbeddingBackend},
    Capability.VISION: {Feature.IMAGES: TextBackend, Feature.READ: ReadingBackend},
}
"""What a backend of a capability must fulfil: always, or where it declares the feature, of which it has one at least."""


class Fault(Exception):
    """Something about a plugin is wrong: `message` continues a sentence that its name begins; `hint` is the remedy."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


# -- hooks ------------------------------------------------------------------------------------------------------------


def check_hooks(
    manager: pluggy.PluginManager, plugin: object, offered: frozenset[Capability], *, observes: bool = False
) -> None:
    """Raise Fault unless everything that looks like a hook is one, and the hooks are those of the entry points.

    `manager` is the one that the plugin is registered with, alone.
    """
    for name, value in _hook_like(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is None:
            if name in HOOKS:
                raise Fault(f"its {name} is not marked with @hookimpl", "Mark it (`from llm_hub import hookimpl`).")
            if inspect.isroutine(value):
                raise Fault(f"its function {name} is no hook", _meant(name))
    for name, caller in vars(manager.hook).items():
        if name not in HOOKS and any(not one.optionalhook for one in _functions(caller)):
            raise Fault(f"its hook {name} does not exist", _meant(name))
    for name in sorted(HOOKS):
        check_hook(manager, plugin, name)
    if not check_hook(manager, plugin, MANIFEST_HOOK):
        raise Fault(f"it has no {MANIFEST_HOOK} hook", "Add one that returns a PluginManifest.")
    groups = {f"llm_hub_{one}": (str(one), one.group, one in offered) for one in Capability}
    groups["llm_hub_observer"] = ("an observer", "llm_hub.observer", observes)
    for hook, (what, group, declared) in groups.items():
        there = bool(_functions(getattr(manager.hook, hook, None)))
        if declared and not there:
            raise Fault(
                f"its entry points offer {what}, but it has no hook {hook}",
                "Add the hook, or remove the entry point.",
            )
        if there and not declared:
            raise Fault(f"it has a hook {hook}, but no entry point in the group {group}", "Add the entry point.")


def check_hook(manager: pluggy.PluginManager, plugin: object, name: str) -> bool:
    """Has the plugin this hook? Raise Fault unless it is one plain function."""
    functions = _functions(getattr(manager.hook, name, None))
    if not functions:
        return False
    if len(functions) > 1:
        named = ", ".join(sorted(one.function.__qualname__ for one in functions))
        raise Fault(f"{len(functions)} of its functions are the hook {name}: {named}", "Keep one of them.")
    function = functions[0].function
    if functions[0].wrapper or functions[0].hookwrapper:
        raise Fault(f"its {name} is a wrapper, with nothing to wrap", "Mark it with @hookimpl alone.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Fault(f"its {name} is async", "Write it as a plain function: it does no I/O.")
    if inspect.isgeneratorfunction(function):
        raise Fault(f"its {name} is a generator", "Return the value, do not yield it.")
    static = inspect.getattr_static(plugin, function.__name__, None)
    if inspect.isclass(plugin) and isinstance(static, types.FunctionType):
        raise Fault(
            f"its entry points name the class {plugin.__name__}, whose {name} wants an instance",
            "Name an instance or a module.",
        )
    return True


def _functions(caller: object) -> list[pluggy.HookImpl]:
    return caller.get_hookimpls() if isinstance(caller, pluggy.HookCaller) else []


def _hook_like(plugin: object) -> Iterator[tuple[str, object]]:
    """The attributes that are named like hooks; looked up without running properties."""
    for name in dir(plugin):
        if name.startswith("llm_hub_"):
            value = inspect.getattr_static(plugin, name, None)
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if not isinstance(value, types.ModuleType):  # a plugin may import a package of such a name
                yield name, value


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, HOOKS, 1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}The hooks are: {', '.join(sorted(HOOKS))}."


# -- manifest ---------------------------------------------------------------------------------------------------------


def check_manifest(manifest: PluginManifest) -> None:
    """Raise Fault unless the fields are what they must be: a Struct does not check what it is made of."""
    _check(manifest.summary, str, "summary", "text")
    _check(manifest.features, frozenset, "features", "a frozenset of Feature")
    for feature in manifest.features:
        _check(feature, Feature, "features", "a frozenset of Feature")
    for field in ("default_url", "install_model"):
        _check(getattr(manifest, field), (str, types.NoneType), field, "text or None")
    _check(manifest.default_models, Mapping, "default_models", "a mapping of Capability to the name of a model")
    for capability, model in manifest.default_models.items():
        _check(capability, Capability, "default_models", "a mapping of Capability to the name of a model")
        _check(model, str, "default_models", "a mapping of Capability to the name of a model")
    if manifest.gpu not in ("none", "optional", "required"):
        raise _wrong("gpu", manifest.gpu, '"none", "optional" or "required"')
    if manifest.install_model is not None:
        try:
            manifest.install_model.format(model="m")
        except (LookupError, ValueError) as error:
            raise _wrong("install_model", manifest.install_model, "a command with {model} in it") from error
    _check_known_bad(manifest.known_bad)
    _check_settings(manifest.settings)


def _check_known_bad(entries: object) -> None:
    _check(entries, tuple, "known_bad", "a tuple of KnownBad")
    assert isinstance(entries, tuple)
    for entry in entries:
        _check(entry, KnownBad, "known_bad", "a tuple of KnownBad")
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(entry.versions)
        except (InvalidSpecifier, AttributeError) as error:
            raise _wrong("known_bad", entry.versions, "PEP 440 specifiers such as `<0.5`") from error


def _check_settings(settings: object) -> None:
    if settings is None:
        return
    if not (isinstance(settings, type) and issubclass(settings, msgspec.Struct)):
        raise _wrong("settings", settings, "a msgspec.Struct class or None")
    if not settings.__struct_config__.forbid_unknown_fields:
        raise Fault(
            f"the settings of its manifest, {settings.__name__}, pass over options that they do not know",
            "Declare the class with forbid_unknown_fields=True.",
        )
    try:
        msgspec.convert({}, settings)
    except msgspec.ValidationError:
        pass  # an option without a default: for whoever configures a backend
    except Exception as error:
        raise Fault(
            f"the settings of its manifest, {settings.__name__}, cannot be used: {error}",
            "Give its fields types that msgspec converts.",
        ) from error


def _check(value: object, wanted: type | tuple[type, ...], field: str, what: str) -> None:
    if not isinstance(value, wanted):
        raise _wrong(field, value, what)


def _wrong(field: str, value: object, what: str) -> Fault:
    return Fault(f"the {field} of its manifest is {value!r:.200}", f"It must be {what}.")


# -- backends ---------------------------------------------------------------------------------------------------------


def check_backend(built: object, capability: Capability) -> None:
    """Raise Fault unless what a plugin built has all that the Protocol of the capability asks for."""
    kind = type(built).__name__
    _check_members(built, (Backend,), capability)
    features: Any = getattr(built, "features", None)
    if not isinstance(features, frozenset) or not all(isinstance(one, Feature) for one in features):
        raise Fault(
            f"the features of the {kind} that it built are {features!r:.200}", "They are a frozenset of Feature."
        )
    protocols = tuple(one for feature, one in _PROTOCOLS[capability].items() if feature is None or feature in features)
    if not protocols:
        wanted = " nor ".join(f"Feature.{feature.name}" for feature in _PROTOCOLS[capability] if feature is not None)
        raise Fault(
            f"the features of the {capability} backend that it built, a {kind}, hold neither {wanted}",
            "Declare what it does.",
        )
    members = _check_members(built, protocols, capability)
    for name in members:
        if name == "features":
            continue
        method = getattr(built, name)
        if not callable(method):
            raise Fault(f"{name} of the {kind} that it built is no method", "Make it one.")
        twin = _is_twin(name, members)
        if inspect.iscoroutinefunction(method) and (not twin or name == "astream"):
            remedy = "It returns an async iterator: yield in it." if twin else f"Only a{name} is async."
            raise Fault(f"{name} of the {kind} that it built is a coroutine function", remedy)
        if inspect.isasyncgenfunction(method) and not twin:
            raise Fault(f"{name} of the {kind} that it built is an async generator", f"Only a{name} is async.")


def _check_members(built: object, protocols: tuple[type, ...], capability: Capability) -> tuple[str, ...]:
    """What these Protocols ask for. Raises Fault for what is not there."""
    members = tuple(dict.fromkeys(name for protocol in protocols for name in _members(protocol)))
    missing = [name for name in members if not hasattr(built, name)]
    if missing:
        names = " and ".join(f"llm_hub.capabilities.{protocol.__name__}" for protocol in protocols)
        raise Fault(
            f"the {capability} backend that it built, a {type(built).__name__}, lacks {', '.join(missing)}",
            f"Implement the Protocol {names}.",
        )
    return members


def _is_twin(name: str, members: tuple[str, ...]) -> bool:
    """Is this the async form of another method?"""
    return name.startswith("a") and name[1:] in members


def _members(protocol: type) -> tuple[str, ...]:
    """What a class must have to fulfil a Protocol, those of its bases first."""
    names: dict[str, None] = {}
    for base in reversed(protocol.__mro__):
        names.update(dict.fromkeys(name for name in vars(base) if not name.startswith("_")))
    return tuple(names)


# -- launching --------------------------------------------------------------------------------------------------------


_HEALTH = ("CMD", "CMD-SHELL")  # how a command of a Compose file is run


def check_launch(spec: object) -> None:
    """Raise Fault unless what a plugin says of starting a backend can be used, and holds no key."""
    if not isinstance(spec, LaunchSpec):
        raise Fault(f"its llm_hub_launch returned a {type(spec).__name__}", "Return a LaunchSpec, or None.")
    if not spec.command or not all(isinstance(part, str) for part in spec.command):
        raise Fault(f"the command of its LaunchSpec is {spec.command!r:.200}", "It must be a tuple of text.")
    if any(API_KEY in part for part in (*spec.command, *(spec.container.command if spec.container else ()))):
        raise Fault("its LaunchSpec puts the key into a command, where everybody sees it", "Put it into environment.")
    if not spec.stop_grace > spec.drain >= 0:
        raise Fault(
            f"its LaunchSpec would kill after {spec.stop_grace:g} s what may drain for {spec.drain:g} s",
            "Make stop_grace longer than drain.",
        )
    needs = spec.needs
    if not isinstance(needs, GpuNeeds):
        raise Fault(f"the needs of its LaunchSpec are a {type(needs).__name__}", "They must be a GpuNeeds.")
    if needs.tensor_parallel < 1 or needs.parallel < 1 or not (needs.share is None or 0 < needs.share <= 1):
        raise Fault(
            f"the needs of its LaunchSpec cannot be: {needs}"[:300],
            "tensor_parallel and parallel are at least 1, share is in (0, 1] or None.",
        )
    if spec.container is not None and not is_pinned(spec.container.image):
        raise Fault(
            f"the image {spec.container.image!r} of its LaunchSpec has no version", "Pin it: name:version, no `latest`."
        )
    if not str(spec.health_path).startswith("/"):
        raise Fault(f"the health_path of its LaunchSpec is {spec.health_path!r:.200}", 'It must be a path: "/health".')
    if spec.container is not None and (len(spec.container.health) < 2 or spec.container.health[0] not in _HEALTH):
        raise Fault(
            f"the health of the container of its LaunchSpec is {spec.container.health!r:.200}",
            'It must be a command as Compose has it: ("CMD", "curl", "-f", "{health}"). What waits for it would wait for ever.',
        )
