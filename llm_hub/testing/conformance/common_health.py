"""The rules of every capability about models and health: both are told truly, and neither costs anything to ask."""

from __future__ import annotations

import time
from typing import Any

from llm_hub.capabilities import ModelInfo, Probe, Rung
from llm_hub.errors import Cancelled, DeadlineExceeded
from llm_hub.testing.conformance.bench import Bench, Ended
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect, not_here
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()

_PROBES = ("probe", "aprobe")


def _probe(bench: AnyBench, way: str, rung: Rung, model: str | None, *, call: Any = None) -> Ended[Probe]:
    chosen = call or bench.call(10.0)
    return Ended(lambda: bench.do(way, rung, model, chosen), f"{way}({rung.name}, {model!r})")


@RULES.rule(
    "models.listed",
    "models() and amodels() list what can be served now as ModelInfo, the same, the bench's model among them.",
    remedy="Ask the server for its list each time; give the names (or aliases) under which a model may be asked for.",
)
def listed(bench: AnyBench) -> None:
    """Both ways."""
    found = {way: Ended(lambda way=way: bench.do(way, bench.call()), way).given() for way in ("models", "amodels")}  # type: ignore[misc]
    for way, models in found.items():
        expect(isinstance(models, tuple), f"{way} gave {type(models).__name__}, no tuple")
        expect(all(isinstance(one, ModelInfo) for one in models), f"{way} gave {models!r:.200}")
    expect(
        found["models"] == found["amodels"], f"models gave {found['models']!r:.200}, amodels {found['amodels']!r:.200}"
    )
    if bench.requirements.lists_models and bench.model is not None:
        names = {name for one in found["models"] for name in (one.name, *one.aliases)}
        expect(bench.model in names, f"the model {bench.model!r} is not among {', '.join(sorted(names)) or 'none'}")


@RULES.rule(
    "models.cost-nothing",
    "Listing models, and probing below LOADED, loads no model and generates nothing.",
    remedy="Use the server's list and its health page; never a small generation.",
)
def cost_nothing(bench: AnyBench) -> None:
    """Watched at the server, or by what the engine tells of itself."""
    with bench.another() as fresh:
        for way in ("models", "amodels"):
            fresh.do(way, fresh.call())
        for way in _PROBES:
            for rung in (Rung.ALIVE, Rung.MODEL_PRESENT):
                _probe(fresh, way, rung, fresh.model).given()
        if fresh.server is not None:
            asked = sorted(
                {one.path for one in fresh.server.requests if fresh.server.form.generates(one.path.partition("?")[0])}
            )
            expect(not asked, f"it asked the server to generate: {', '.join(asked)}")
            loads = getattr(fresh.server, "loads", [])
            expect(not loads, f"the server loaded {loads!r}")
        elif fresh.live is None:
            loaded = [one.name for one in fresh.do("models", fresh.call()) if one.loaded]
            expect(not loaded, f"these were loaded by asking: {', '.join(loaded)}")


@RULES.rule(
    "probe.climbs",
    "The health ladder is climbed to its top when all is well, in both ways.",
    remedy="Return Probe(rung=the highest that held, wanted=rung); GENERATING makes one token.",
)
def climbs(bench: AnyBench) -> None:
    """Every rung."""
    for way in _PROBES:
        for rung in Rung:
            ended = _probe(bench, way, rung, bench.model, call=bench.call(60.0))
            probe = ended.given()
            expect(isinstance(probe, Probe), f"{ended.what} gave {probe!r:.200}")
            expect(probe.wanted is rung, f"{ended.what} says that it was asked for {probe.wanted!r}")
            expect(probe.ok, f"{ended.what} held only {probe.rung!r}: {probe.detail}")


@RULES.rule(
    "probe.unknown-model",
    "A model that is not there is on no rung above ALIVE, and the probe says so.",
    remedy="Look the model up in the server's list for MODEL_PRESENT.",
)
def unknown_model(bench: AnyBench) -> None:
    """An answer, not an error."""
    if not bench.requirements.lists_models:
        not_here("the requirements say that it does not know its models (lists_models)")
    for way in _PROBES:
        ended = _probe(bench, way, Rung.MODEL_PRESENT, "no-such-model")
        probe = ended.given()
        expect(not probe.ok, f"{ended.what} says that it is there")
        expect(probe.detail, f"{ended.what} does not say what is wrong")


@RULES.rule(
    "probe.is-an-answer",
    "A probe of a sick backend is an answer that says what is wrong, and no error.",
    remedy="Catch the errors of the hub in probe() (HttpBackend does), and return Probe(rung=None, detail=...).",
    needs=Needs.SERVER,
)
def answers(bench: AnyBench) -> None:
    """Down, failing, answered by something else, and silent."""
    faults: list[tuple[Fault, dict[str, Any]]] = [
        (Fault.REFUSE, {}),
        (Fault.SERVER_ERROR, {"status": 500}),
        (Fault.HTML_PAGE, {}),
        (Fault.CLOSE_BEFORE_HEADERS, {}),
    ]
    for fault, options in faults:
        for way in _PROBES:
            with bench.faulty(fault, **options):
                ended = _probe(bench, way, Rung.GENERATING, bench.model)
            ended.what += f", while the server shows {fault.name},"
            probe = ended.given()
            expect(not probe.ok, f"{ended.what} says that all is well: {probe!r:.200}")
            expect(probe.detail, f"{ended.what} does not say what is wrong")


@RULES.rule(
    "probe.dead-engine",
    "A server whose API lives while its engine is dead or hangs does not reach GENERATING.",
    remedy="Let the top rung make a token, within the load deadline of the call.",
    needs=Needs.SERVER,
)
def dead_engine(bench: AnyBench) -> None:
    """Dead, and hanging."""
    for fault in (Fault.ENGINE_DEAD, Fault.GENERATION_HANGS):
        with bench.faulty(fault):
            ended = _probe(bench, "probe", Rung.GENERATING, bench.model, call=bench.hurried())
        ended.what += f", while the server shows {fault.name},"
        probe = ended.given()
        expect(not probe.ok, f"{ended.what} says that it generates")


@RULES.rule(
    "probe.ends",
    "A probe of a silent backend ends at the call's deadline, and at its cancellation.",
    remedy="Raise DeadlineExceeded (stage `total`) and Cancelled of the call itself, or answer; never wait on.",
    needs=Needs.SERVER,
)
def ends(bench: AnyBench) -> None:
    """With a server that never answers."""
    with bench.faulty(Fault.HANG_BEFORE_HEADERS):
        for way in _PROBES:
            ended = _probe(bench, way, Rung.ALIVE, bench.model, call=bench.call(0.3))
            if ended.error is not None:
                ended.raised(DeadlineExceeded, Cancelled)
            else:
                expect(not ended.given().ok, f"{ended} of a server that never answers")
            expect(ended.seconds < 2.0, f"{ended.what} took {ended.seconds:.1f} s, with a deadline of 0.3")


@RULES.rule(
    "hub.serves",
    "By way of the hub it serves: the route is explained, the status is ready, and the answer says who served it.",
    remedy="`llm-hub explain CAPABILITY` and `llm-hub status` show what the hub sees.",
)
def hub_serves(bench: AnyBench) -> None:
    """What a service sees."""
    decision = bench.hub.explain(bench.capability, operation=bench.operation)
    expect(decision.backend == "the-backend", f"the hub chose {decision.backend!r}")
    if not bench.operation:  # the status is that of the usual operation
        status = bench.hub.status([bench.capability], timeout=20.0)
        expect(status.ready, f"the hub is not ready: {status!r:.400}")
    began = time.monotonic()
    models = bench.hub.models(decision.backend, capability=bench.capability)
    expect(isinstance(models, tuple), f"Hub.models gave {models!r:.200} after {time.monotonic() - began:.1f} s")
