"""Choosing is policy, read as a table: what is asked and known, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.capabilities import Capability, Feature
from llm_hub.config import BackendConfig
from llm_hub.errors import HubError, NoBackend, PluginBroken, SettingsError, UnknownBackend, UnsupportedFeature
from llm_hub.selection import Ask, Candidate, Decision, Rejected, Target, decides_by_default, select
from llm_hub.settings import Assignment, Named, Settings

TEXT, EMBEDDING, VISION = Capability.TEXT, Capability.EMBEDDING, Capability.VISION
ALL = frozenset({TEXT, EMBEDDING, VISION})


def candidate(name: str, *, plugin: str | None = None, **more: Any) -> Candidate:
    return Candidate(name=name, plugin=plugin or name, **{"capabilities": ALL, **more})


CANDIDATES: Mapping[str, Candidate] = {
    "ollama": candidate("ollama", models={TEXT: "llama3.2", EMBEDDING: "nomic"}),
    "vllm": candidate("vllm", models={TEXT: "qwen"}, features=frozenset({Feature.TOOLS, Feature.SYSTEM})),
    "llamacpp": candidate("llamacpp", capabilities=frozenset({TEXT}), models={TEXT: "smollm2"}),
    "tiny": candidate("tiny", capabilities=frozenset({TEXT}), features=frozenset()),
    "broken": candidate("broken", problem=PluginBroken("raised at import", plugin="broken")),
}


def named(*names: str, source: str = "LLM_PROVIDER") -> Named:
    return Named(names, source)


def choose(
    ask: Ask | None = None,
    *,
    answers: bool = True,
    candidates: Mapping[str, Candidate] = CANDIDATES,
    assignment: tuple[Assignment, ...] = (),
    **settings: Any,
) -> Decision:
    return select(ask or Ask(capability=TEXT), candidates, Settings(**settings), assignment, {"ollama": answers})


def assigned(backend: str, *capabilities: Capability) -> Assignment:
    return Assignment(
        backend=backend, capabilities=capabilities, gpus=(0,), memory=None, exclusive=False, source="llm-hub.toml:9"
    )


@pytest.mark.parametrize(
    ("ask", "settings", "assignment", "backend", "rule"),
    [
        (Ask(capability=TEXT, backend="tiny"), {"provider": named("vllm")}, (), "tiny", 1),
        (Ask(capability=TEXT), {"providers": {TEXT: named("vllm")}, "provider": named("ollama")}, (), "vllm", 3),
        (Ask(capability=TEXT), {"provider": named("vllm"), "routes": {"text": named("ollama")}}, (), "vllm", 4),
        (
            Ask(capability=EMBEDDING),
            {"provider": named("vllm"), "routes": {"embedding": named("ollama")}},
            (),
            "ollama",
            5,
        ),
        (Ask(capability=TEXT), {"routes": {"text": named("vllm")}}, (assigned("tiny", TEXT),), "vllm", 5),
        (Ask(capability=TEXT), {}, (assigned("tiny", VISION), assigned("vllm", TEXT)), "vllm", 6),
        (Ask(capability=TEXT), {}, (), "ollama", 7),
    ],
)
def test_the_first_rule_that_names_a_backend_decides(
    ask: Ask, settings: dict[str, Any], assignment: tuple[Assignment, ...], backend: str, rule: int
) -> None:
    decision = choose(ask, assignment=assignment, **settings)
    assert (decision.backend, decision.rule) == (backend, rule)
    assert decision.reasons


def test_a_route_of_the_operation_goes_before_that_of_the_capability() -> None:
    routes = {"vision": named("ollama"), "vision.read": named("reader")}
    assert choose(READ, routes=routes, candidates=SEEING).backend == "reader"
    assert choose(DESCRIBE, routes=routes, candidates=SEEING).backend == "ollama"


READ, DESCRIBE = Ask(capability=VISION, operation="read"), Ask(capability=VISION)
SEEING: Mapping[str, Candidate] = {
    "ollama": candidate("ollama", models={VISION: "llava"}, features=frozenset({Feature.IMAGES})),
    "vllm": candidate("vllm", models={VISION: "qwen-vl"}, features=frozenset({Feature.IMAGES})),
    "reader": candidate("reader", capabilities=frozenset({VISION}), features=frozenset({Feature.READ})),
    "tesseract": candidate("tesseract", capabilities=frozenset({VISION}), features=frozenset({Feature.READ})),
}


def test_two_that_are_assigned_for_one_capability_are_no_fallbacks_of_each_other() -> None:
    both = (assigned("vllm", TEXT), assigned("tiny", TEXT))
    with pytest.raises(
        SettingsError, match=r"vllm \(.*:9\) and tiny .*both assigned for text.*\[routes\] text"
    ) as raised:
        choose(assignment=both)
    assert raised.value.where == "llm-hub.toml:9"
    assert choose(assignment=both, routes={"text": named("tiny")}).backend == "tiny"
    assert choose(assignment=both, provider=named("vllm")).fallbacks == ()
    assert choose(Ask(capability=TEXT, backend="tiny"), assignment=both).rule == 1
    with pytest.raises(SettingsError, match="and broken .* are both assigned"):
        choose(assignment=(assigned("vllm", TEXT), assigned("broken", TEXT)))
    with pytest.raises(UnknownBackend, match="'gone'"):
        choose(assignment=(assigned("vllm", TEXT), assigned("gone", TEXT)))


def test_one_that_is_assigned_for_reading_beside_one_for_describing_is_no_contradiction() -> None:
    both = (assigned("vllm", VISION), assigned("reader", VISION))
    assert choose(DESCRIBE, candidates=SEEING, assignment=both).backend == "vllm"
    assert choose(READ, candidates=SEEING, assignment=both).backend == "reader"
    # Not loaded yet, nothing is known of what it does: both are named, so that both are looked at before it is decided.
    unread = {**SEEING, "reader": msgspec.structs.replace(SEEING["reader"], features=None)}
    assert choose(DESCRIBE, candidates=unread, assignment=both).fallbacks == (Target("reader", None),)


def test_the_operation_of_vision_that_is_not_named_is_describing() -> None:
    assert Ask(capability=VISION).operation == "describe"
    assert Ask(capability=VISION).features == {Feature.IMAGES}
    assert READ.features == {Feature.READ}
    assert (READ.what, Ask(capability=TEXT).what) == ("vision.read", "text")
    with pytest.raises(ValueError, match="vision has no operation 'chat', but describe, read"):
        Ask(capability=VISION, operation="chat")


@pytest.mark.parametrize(
    ("settings", "describes", "reads"),
    [
        ({}, "ollama", "tesseract"),
        ({"provider": named("ollama")}, "ollama", "tesseract"),
        ({"provider": named("vllm"), "fallback": named("ollama")}, "vllm", "tesseract"),
        ({"providers": {"vision": named("vllm"), "vision.read": named("reader")}}, "vllm", "reader"),
        ({"providers": {"vision.describe": named("vllm")}, "provider": named("ollama")}, "vllm", "tesseract"),
        ({"routes": {"vision": named("reader", "vllm")}}, "vllm", "reader"),
        ({"routes": {"vision.describe": named("vllm")}}, "vllm", "tesseract"),
        ({"assignment": (assigned("vllm", VISION),)}, "vllm", "tesseract"),
    ],
)
def test_describing_and_reading_are_chosen_apart(settings: dict[str, Any], describes: str, reads: str) -> None:
    assert choose(DESCRIBE, candidates=SEEING, **settings).backend == describes
    decision = choose(READ, candidates=SEEING, **settings)
    assert decision.backend == reads
    assert not decision.warnings


@pytest.mark.parametrize(
    ("ask", "settings", "words"),
    [
        (
            READ,
            {"providers": {"vision": named("ollama")}},
            "ollama: .*cannot read the text on images.*LLM_VISION_READ_PROVIDER",
        ),
        (
            READ,
            {"routes": {"vision": named("vllm")}},
            "vllm: .*cannot read the text on images.*LLM_VISION_READ_PROVIDER",
        ),
        (DESCRIBE, {"providers": {"vision": named("reader")}}, "reader: .*cannot describe images.*name a backend"),
        (Ask(capability=VISION, backend="tesseract"), {}, "tesseract: .*cannot describe images"),
    ],
)
def test_who_is_named_for_vision_and_does_the_other_half_of_it_is_an_error(
    ask: Ask, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=words):
        choose(ask, candidates=SEEING, **settings)


def test_with_nothing_that_reads_the_error_says_what_to_install() -> None:
    bare = {"ollama": SEEING["ollama"]}
    with pytest.raises(NoBackend, match="vision.read, and the embedded 'tesseract' is not installed.*pip install"):
        choose(READ, candidates=bare)
    with pytest.raises(NoBackend, match=r"nothing is configured for vision\.describe.*LLM_PROVIDER=ollama"):
        choose(DESCRIBE, candidates=bare, answers=False)


def test_whether_ollama_answers_need_not_be_known_for_reading() -> None:
    assert decides_by_default(DESCRIBE, SEEING, Settings())
    assert not decides_by_default(READ, SEEING, Settings())


def test_a_provider_without_a_model_for_the_capability_leaves_it_to_the_next_rule() -> None:
    assert choose(Ask(capability=EMBEDDING), provider=named("vllm")).rule == 7
    bare = {**CANDIDATES, "vllm": candidate("vllm")}
    assert choose(Ask(capability=TEXT), candidates=bare, provider=named("vllm")).backend == "vllm"
    assert choose(Ask(capability=EMBEDDING), candidates=bare, provider=named("vllm")).backend == "ollama"


def test_the_model_is_the_calls_else_the_configured_else_the_only_one() -> None:
    assert choose(Ask(capability=TEXT, model="big")).model == "big"
    assert choose().model == "llama3.2"
    assert choose(Ask(capability=TEXT, backend="tiny")).model is None


def test_fallbacks_are_the_rest_of_the_route_then_the_declared_ones() -> None:
    decision = choose(routes={"text": named("vllm", "ollama")}, fallback=named("llamacpp", "ollama"))
    assert decision.fallbacks == (Target("ollama", "llama3.2"), Target("llamacpp", "smollm2"))


@pytest.mark.parametrize("ask", [Ask(capability=TEXT, backend="vllm"), Ask(capability=TEXT, model="other")])
def test_a_call_that_names_backend_or_model_has_no_fallback(ask: Ask) -> None:
    decision = choose(ask, provider=named("vllm"), fallback=named("ollama"))
    assert (decision.backend, decision.fallbacks) == ("vllm", ())


def test_a_fallback_that_cannot_serve_is_left_out_with_a_warning() -> None:
    decision = choose(provider=named("vllm"), fallback=named("broken", "ollama"))
    assert decision.fallbacks == (Target("ollama", "llama3.2"),)
    assert "broken" in decision.warnings[0]
    assert Rejected("broken", "raised at import") in decision.rejected


def test_in_a_route_the_first_with_the_features_serves() -> None:
    ask = Ask(capability=TEXT, features=frozenset({Feature.TOOLS}))
    decision = choose(ask, routes={"text": named("tiny", "vllm")})
    assert decision.backend == "vllm"
    assert decision.rejected[0].backend == "tiny"


def test_what_is_named_alone_and_lacks_a_feature_is_an_error() -> None:
    ask = Ask(capability=TEXT, features=frozenset({Feature.TOOLS}))
    with pytest.raises(UnsupportedFeature, match="tiny: its plugin 'tiny' has no support for tools"):
        choose(ask, provider=named("tiny"))


def test_every_other_candidate_is_rejected_with_a_reason() -> None:
    decision = choose(provider=named("vllm"))
    assert {one.backend: one.reason for one in decision.rejected} == {
        "broken": "raised at import",
        "llamacpp": "LLM_PROVIDER does not name it",
        "ollama": "LLM_PROVIDER does not name it",
        "tiny": "LLM_PROVIDER does not name it",
    }


@pytest.mark.parametrize("where", ["provider", "fallback"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(where: str) -> None:
    settings: dict[str, Any] = {"provider": named("vllm"), where: named("vlm")}
    with pytest.raises(UnknownBackend, match=r"the backend 'vlm', which nothing defines.*llamacpp, ollama"):
        choose(**settings)


def test_a_broken_plugin_that_is_asked_for_is_its_error_and_one_that_is_not_stops_nobody() -> None:
    with pytest.raises(PluginBroken, match="raised at import"):
        choose(provider=named("broken"))
    assert choose().backend == "ollama"


def test_a_capability_that_the_plugin_does_not_offer_is_an_error() -> None:
    with pytest.raises(NoBackend, match="llamacpp: its plugin 'llamacpp' offers text, not embedding"):
        choose(Ask(capability=EMBEDDING), providers={EMBEDDING: named("llamacpp")})


def test_where_nothing_is_configured_and_no_ollama_answers_the_embedded_serves_with_a_warning() -> None:
    decision = choose(answers=False)
    assert (decision.backend, decision.rule) == ("llamacpp", 7)
    assert "no Ollama answers" in decision.warnings[0]
    assert "LLM_PROVIDER" in decision.warnings[0]
    assert Rejected("ollama", "does not answer") in decision.rejected


def test_what_is_embedded_never_serves_where_something_is_configured() -> None:
    backends = {"vllm": BackendConfig(name="vllm", plugin="vllm")}
    decision = choose(answers=False, backends=backends)
    assert decision.backend == "ollama"
    assert "vllm configured, but nothing chooses" in decision.warnings[0]


def test_without_anything_the_error_says_what_to_install() -> None:
    with pytest.raises(NoBackend, match=r"nothing is configured for text.*pip install llm-hub-llamacpp"):
        choose(answers=False, candidates={"ollama": CANDIDATES["ollama"]})
    with pytest.raises(NoBackend, match="Ollama is not installed"):
        choose(answers=False, candidates={})


def test_the_default_is_looked_at_only_where_the_decision_depends_on_it() -> None:
    assert decides_by_default(Ask(capability=TEXT), CANDIDATES, Settings())
    assert not decides_by_default(Ask(capability=TEXT), CANDIDATES, Settings(provider=named("vllm")))
    assert not decides_by_default(Ask(capability=TEXT, backend="vllm"), CANDIDATES, Settings())
    assert not decides_by_default(Ask(capability=TEXT), {}, Settings())
    configured = Settings(backends={"vllm": BackendConfig(name="vllm", plugin="vllm")})
    assert not decides_by_default(Ask(capability=TEXT), CANDIDATES, configured)


names = st.sampled_from([*CANDIDATES, "nobody"])
choices = st.none() | names.map(named)
routes = st.dictionaries(
    st.sampled_from(["text", "embedding"]),
    st.lists(names, min_size=1, max_size=3, unique=True).map(lambda some: named(*some)),
    max_size=2,
)


@given(
    ask=st.builds(
        Ask,
        capability=st.sampled_from([TEXT, EMBEDDING]),
        backend=st.none() | names,
        features=st.sets(st.sampled_from([Feature.TOOLS, Feature.SYSTEM])).map(frozenset),
    ),
    provider=choices,
    fallback=choices,
    routes=routes,
    answers=st.booleans(),
)
def test_whatever_is_configured_the_decision_is_sound_and_repeatable(
    ask: Ask, provider: Named | None, fallback: Named | None, routes: dict[str, Named], answers: bool
) -> None:
    settings = Settings(provider=provider, fallback=fallback, routes=routes)
    try:
        decision = select(ask, CANDIDATES, settings, (), {"ollama": answers})
    except HubError:
        return  # which error, the tests above say; any other exception fails this one
    assert decision == select(ask, CANDIDATES, settings, (), {"ollama": answers})
    chosen = [decision.backend, *(target.backend for target in decision.fallbacks)]
    assert len(set(chosen)) == len(chosen)
    for name in chosen:
        assert ask.capability in CANDIDATES[name].capabilities
        assert CANDIDATES[name].problem is None
        features = CANDIDATES[name].features
        assert features is None or ask.features <= features
    assert {one.backend for one in decision.rejected} == set(CANDIDATES) - set(chosen)
    assert ask.backend in (None, decision.backend)
    if ask.backend is not None:
        assert not decision.fallbacks
    assert msgspec.json.encode(decision)
