"""Questions about which backend serves."""

from __future__ import annotations

from llm_hub.capabilities import Capability
from llm_hub.errors import HubError
from llm_hub.hub import Hub
from llm_hub.provider import get_provider
from llm_hub.verification.bench import Bench
from llm_hub.verification.common import by, one, refused, two
from llm_hub.verification.questions import No, Skip, expect, question

__all__ = [
    "both_providers_at_once_for_different_capabilities",
    "do_the_configured_backends_answer",
    "is_ollama_the_default",
    "llm_provider_needs_no_code_change",
    "what_does_an_unknown_provider_say",
]


@question("Do the backends that are configured answer?")
def do_the_configured_backends_answer(bench: Bench) -> str:
    """Each is asked once for each capability that it has a model for; a first question may load that."""
    seen, wrong = [], []
    for capability in Capability:
        tried = bench.tried(capability)
        seen.append(f"{capability}: {', '.join(by(one.served_by) for one in tried if one.served_by) or 'nobody'}")
        wrong += [
            f"{one.name} does not serve {capability}: {one.error}"
            for position, one in enumerate(tried)
            if one.error is not None
            and (bench.has_model(one.name, capability) or (capability is Capability.TEXT and not position))
        ]
    expect(seen="; ".join(wrong), holds=not wrong)
    return "; ".join(seen)


@question("Is Ollama the default, when nothing says otherwise?")
def is_ollama_the_default(bench: Bench) -> str:
    """As for code written against Ollama: `get_provider()` and no variable but Ollama's own."""
    if "ollama" not in bench.registry.names():
        raise Skip("the plugin for Ollama is not installed", "pip install llm-hub-ollama")
    provider = get_provider(bench.ollama_alone())
    try:
        decision = provider.hub.explain("text")
    finally:
        provider.close()
    expect(seen=f"{decision.backend} would serve: {decision.rule_text}", holds=decision.backend == "ollama")
    return f"ollama serves: {decision.rule_text}"


@question("Does LLM_PROVIDER choose, with no change of code?")
def llm_provider_needs_no_code_change(bench: Bench) -> str:
    """The same function under each value of the variable."""
    names = two(bench, Capability.TEXT)

    def service(hub: Hub) -> str:
        answer = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout)
        return by(answer.served_by)

    seen = []
    for name in names:
        with bench.hub(LLM_PROVIDER=name) as hub:
            served = service(hub)
        expect(seen=f"LLM_PROVIDER={name} was served by {served}", holds=served.partition("/")[0] == name)
        seen.append(f"LLM_PROVIDER={name}: {served}")
    return ", ".join(seen)


@question("Can two backends serve at once, each another capability?")
def both_providers_at_once_for_different_capabilities(bench: Bench) -> str:
    """Text from one and embeddings from another, in one hub."""
    text = one(bench, Capability.TEXT)
    one(bench, Capability.EMBEDDING)
    others = [name for name in bench.able(Capability.EMBEDDING) if name != text]
    if not others:
        others = [text]
        texts = [name for name in bench.able(Capability.TEXT) if name != text]
        if not texts:
            raise Skip(
                f"{text} is the only backend for both", "Configure a second one: [backends.NAME] in llm-hub.toml"
            )
        text = texts[0]
    with bench.hub(LLM_TEXT_PROVIDER=text, LLM_EMBEDDING_PROVIDER=others[0]) as hub:
        answer = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout)
        vectors = hub.embedding().embed(["ping"], timeout=bench.timeout)
    seen = f"text by {by(answer.served_by)}, embedding by {by(vectors.served_by)}"
    served = answer.served_by, vectors.served_by
    expect(seen=seen, holds=[who.backend for who in served if who is not None] == [text, others[0]])
    return seen


@question("Does an unknown provider give an error that says what there is?")
def what_does_an_unknown_provider_say(bench: Bench) -> str:
    """A misspelt LLM_PROVIDER is refused when the hub is opened, and never passed over."""
    try:
        with bench.hub(LLM_PROVIDER="ollamma") as hub:
            hub.text().chat("ping", timeout=bench.timeout)
    except HubError as error:
        said = str(error)
        expect(seen=f"it says: {said}", holds="ollamma" in said and "LLM_PROVIDER" in said and error.hint is not None)
        return refused(error)
    raise No("it was passed over")
