"""What an author says of a plugin, so that the conformance suites can be run on it: documented properties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from llm_hub.capabilities import Feature
from llm_hub.testing.conformance.rules import SUITE_VERSION, version_of

if TYPE_CHECKING:
    from llm_hub.testing.conformance.rules import Suite
    from llm_hub.testing.server import FakeServer

__all__ = ["Requirements"]


class Requirements:
    """What the suites of every capability need to know. Each property is an attribute or a method that a subclass sets."""

    suite: ClassVar[Suite]

    suite_version: str = SUITE_VERSION
    """The version of the suites that the plugin keeps to, by default the newest. With an earlier one, rules that became
    mandatory since are told when they do not hold, and fail nothing."""

    plugin: str | object = ""
    """The plugin: the name under which it is installed, or the object with its hooks. Must be set."""

    plugin_name: str = ""
    """The name of the plugin where `plugin` is an object; by default `plugin-under-test`."""

    model: str | None = "hub-test-vlm"
    """The model to ask; None for a backend that has a single model and needs no name. The fake servers have `hub-test-vlm`,
    `hub-test-vlm-think` and (embeddings) `all-minilm:22m`."""

    exact: bool | None = None
    """Are the answers those of hub-test-vlm (see the testing reference), so that their content is checked and not only their
    form? None: yes, where the server is one of the kit's live fakes, or the model is called so."""

    options: Mapping[str, Any] = {}
    """The options of the backend, as they would stand in `[backends.NAME]` beside `base_url` and `models`; for a real server that
    wants a key `{"api_key_env": "ACME_API_KEY"}`."""

    known_limits: Mapping[str, str] = {}
    """Rules that the plugin is known to break, each with the reason: `{"text.seed": "the server ignores it"}`. They are
    expected to fail, and reported when they hold after all. A reason must be given, and a rule that does not exist is an error."""

    model_lacks: Mapping[str, str] = {}
    """Features that the plugin declares and the model of the bench does not have, each with the reason:
    `{"reasoning_effort": "hub-test-vlm takes none"}`. Asking for one must be refused then (UnsupportedFeature), not ignored."""

    lists_models: bool = True
    """Does it know which models it has, so that an unknown one is an error that lists them?"""

    sends_key: bool = True
    """Does it send a key (`api_key`) to its server? False for engines, and for servers that have no keys."""

    live: str | None = None
    """The address of a real server, where the suite is to run on one; `--llm-hub-live` of pytest and `--live` of
    `llm-hub check` set it too."""

    patience: float | None = None
    """Seconds that one call may take before it counts as hanging. None: 8 on a server of the kit, else 60."""

    heavy_imports: tuple[str, ...] = ()
    """Modules (with what is under them) that importing the plugin's module must not load, beside those that no plugin may
    (`llm_hub.testing.imports.HEAVY`)."""

    allowed_imports: tuple[str, ...] = ()
    """Of the modules that no plugin may load when it is imported, those that this one must."""

    def server(self) -> FakeServer | None:
        """A new server for the backend to call, not yet started: `FakeOllama()`, `FakeVLLM()`, or a `FakeServer` of your own.

        None for an engine in the process, and for whatever else has no HTTP server. With a server the suite also checks
        what the backend does when it misbehaves.
        """
        return None

    def real_server(self) -> AbstractContextManager[str] | None:
        """A context manager that starts a real server and gives its address; the suite runs on that, as with `live`.

        For authors who can: a process of their own, a container. None (the default): `server()` counts.
        """
        return None

    def configuration(self, url: str | None) -> Mapping[str, Any]:
        """The table `[backends.NAME]` for a server at this address (None where there is no server)."""
        found: dict[str, Any] = dict(self.options)
        if url is not None:
            found["base_url"] = url
        if self.model is not None:
            found["models"] = {str(self.suite.capability): self.model}
        return found

    @classmethod
    def mistakes(cls) -> Iterator[str]:
        """What is wrong with the requirements themselves."""
        try:
            known = (1, 0) <= version_of(cls.suite_version) <= version_of(SUITE_VERSION)
        except ValueError:
            known = False
        if not known:
            yield (
                f"{cls.__name__}.suite_version is {cls.suite_version!r}, and the suites are of version {SUITE_VERSION}.\n"
                "Remedy: name a version that there is, or leave it out."
            )
        for name, reason in cls.known_limits.items():
            if name not in cls.suite.rules:
                yield (
                    f"{cls.__name__}.known_limits names {name!r}, which is no rule of the {cls.suite.capability} suite.\n"
                    "Remedy: the rules are listed in docs/reference/conformance.md."
                )
            elif not str(reason or "").strip():
                yield f"{cls.__name__}.known_limits gives no reason for {name}.\nRemedy: say why the plugin breaks it."

    def lacking(self, feature: Feature | None) -> str | None:
        """Why the model of the bench cannot do what the plugin declares, None if it can."""
        return None if feature is None else self.model_lacks.get(feature.value)

    def claims(self, feature: Feature) -> bool | None:
        """What is said here of a feature: True, False, or None for nothing, so that the plugin's own declaration counts."""
        said: bool | None = getattr(self, feature.value, None)
        return said
