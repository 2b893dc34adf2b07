"""The rules of every capability about a server that fails: which error it becomes, and what the error tells."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_hub.errors import (
    AuthenticationFailed,
    BackendError,
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    BackendUnreachable,
    ConnectionLost,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
)
from llm_hub.testing.conformance.bench import BACKEND, Bench, Ended
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect, not_here
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()

_MAPPED = "Let your dialect's `error()` map the status and the body; `llm_hub.openai_errors` does it for OpenAI's form."


@contextmanager
def _failing(bench: AnyBench, fault: Fault, **options: Any) -> Iterator[list[tuple[str, Ended[Any]]]]:
    """How the plainest work ends in each way while the server shows this fault."""
    with bench.faulty(fault, **options):
        shown = " ".join([fault.name, *(f"{name}={value!r}" for name, value in options.items())])
        yield [(f"{way}, while the server shows {shown}", bench.ended(way)) for way in bench.ways]


def _all_raise(
    bench: AnyBench, kind: type[HubError] | tuple[type[HubError], ...], fault: Fault, **options: Any
) -> list[Any]:
    """The errors of all ways, each of which must be of this kind."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    with _failing(bench, fault, **options) as endings:
        found = []
        for what, ended in endings:
            ended.what = what
            found.append(ended.raised(*kinds))
        return found


@RULES.rule(
    "errors.unreachable",
    "A server that is not there is BackendUnreachable, and the message has its address.",
    remedy="Send over the transport of the build context (HttpBackend does), or map your client's connect errors.",
    needs=Needs.SERVER,
)
def unreachable(bench: AnyBench) -> None:
    """The port is closed."""
    address = str(bench.fake.port)
    for error in _all_raise(bench, BackendUnreachable, Fault.REFUSE):
        expect(address in str(error), f"the error {str(error)!r} does not tell the address (port {address})")


@RULES.rule(
    "errors.bad-request",
    "A request that the server refuses (400, 422) is InvalidRequest, which blames no backend and is not retried.",
    remedy=_MAPPED,
    needs=Needs.SERVER,
)
def bad_request(bench: AnyBench) -> None:
    """400 and 422, with the server's own words."""
    for status in (400, 422):
        for error in _all_raise(bench, InvalidRequest, Fault.BAD_REQUEST, status=status, message="strange-words-17"):
            expect("strange-words-17" in str(error), f"the server's words are not in the error: {str(error)!r}")


@RULES.rule(
    "errors.unauthorized",
    "401 and 403 are AuthenticationFailed.",
    remedy=_MAPPED,
    needs=Needs.SERVER,
)
def unauthorized(bench: AnyBench) -> None:
    """Both."""
    _all_raise(bench, AuthenticationFailed, Fault.UNAUTHORIZED)
    _all_raise(bench, AuthenticationFailed, Fault.FORBIDDEN)


@RULES.rule(
    "errors.rate-limited",
    "429 is BackendOverloaded with the seconds of Retry-After (a number or a date), None without it.",
    remedy="Read the header with `llm_hub.openai_errors.retry_after`, and hand it to BackendOverloaded(retry_after=...).",
    needs=Needs.SERVER,
)
def rate_limited(bench: AnyBench) -> None:
    """As seconds, as a date, and not at all."""
    for error in _all_raise(bench, BackendOverloaded, Fault.RATE_LIMITED, retry_after=7):
        expect(error.retry_after == 7.0, f"Retry-After: 7 became retry_after={error.retry_after!r}")
    for error in _all_raise(bench, BackendOverloaded, Fault.RATE_LIMITED, retry_after=None):
        expect(error.retry_after is None, f"without Retry-After there was retry_after={error.retry_after!r}")
    later = datetime.now(UTC) + timedelta(seconds=90)
    for error in _all_raise(bench, BackendOverloaded, Fault.RATE_LIMITED, retry_after=later):
        told = error.retry_after
        expect(told is not None and 30 <= told <= 91, f"a Retry-After date 90 s ahead became retry_after={told!r}")


@RULES.rule(
    "errors.loading",
    "503 while the model loads is BackendLoading, and 503 with a full queue is BackendOverloaded.",
    remedy=_MAPPED,
    needs=Needs.SERVER,
)
def loading(bench: AnyBench) -> None:
    """Told apart by the server's words."""
    _all_raise(bench, BackendLoading, Fault.LOADING)
    _all_raise(bench, BackendOverloaded, Fault.QUEUE_FULL)


@RULES.rule(
    "errors.failed",
    "500 and its kin, out of memory among them, are BackendFailed, which is not tried again at the same backend.",
    remedy=_MAPPED,
    needs=Needs.SERVER,
)
def failed(bench: AnyBench) -> None:
    """500, 502, out of memory, a dead engine."""
    faults: list[tuple[Fault, dict[str, Any]]] = [
        (Fault.SERVER_ERROR, {"status": 500}),
        (Fault.SERVER_ERROR, {"status": 502}),
        (Fault.OUT_OF_MEMORY, {}),
        (Fault.ENGINE_DEAD, {}),
    ]
    for fault, options in faults:
        for error in _all_raise(bench, BackendFailed, fault, **options):
            expect(not error.retryable, f"{fault.name} became {type(error).__name__}, which would be retried there")


@RULES.rule(
    "errors.lost",
    "A connection that breaks before the answer begins is ConnectionLost.",
    remedy="Send over the transport of the build context (HttpBackend does), or map your client's read errors.",
    needs=Needs.SERVER,
)
def lost(bench: AnyBench) -> None:
    """Closed, and reset."""
    for fault in (Fault.CLOSE_BEFORE_HEADERS, Fault.RESET_BEFORE_HEADERS):
        _all_raise(bench, ConnectionLost, fault)


@RULES.rule(
    "errors.stale-connection",
    "A kept connection that the server has closed meanwhile is no failure: a fresh one is used.",
    remedy="Send over the transport of the build context (HttpBackend does), or retry once on a fresh connection.",
    needs=Needs.SERVER,
)
def stale(bench: AnyBench) -> None:
    """Closed by the server between two requests, and just when the second came."""
    for way in bench.ways:
        bench.ended(way).given()
        with bench.faulty(Fault.CLOSE_KEPT_ALIVE, times=1):
            ended = bench.ended(way)
            ended.what = f"{way} on a connection that was kept too long"
            ended.given()


@RULES.rule(
    "errors.protocol",
    "An answer that is not of the protocol (a page for people, no HTTP, nothing at all) is ProtocolError, or a failure of the backend.",
    remedy="Decode strictly, and raise ProtocolError with the first words of what came.",
    needs=Needs.SERVER,
)
def protocol(bench: AnyBench) -> None:
    """A proxy's page, a body of nothing, another protocol."""
    for error in _all_raise(bench, ProtocolError, Fault.HTML_PAGE):
        expect("sign in" in str(error).lower(), f"the page's first words are not in the error: {str(error)!r:.200}")
    _all_raise(bench, (ProtocolError, ConnectionLost), Fault.EMPTY_BODY)
    _all_raise(bench, (ProtocolError, ConnectionLost), Fault.NOT_HTTP)


@RULES.rule(
    "errors.redirect",
    "A redirect to another host is not followed: it is an error that says where it leads.",
    remedy="Do not follow redirects; raise ProtocolError with the location.",
    needs=Needs.SERVER,
)
def redirect(bench: AnyBench) -> None:
    """307 to elsewhere."""
    for error in _all_raise(bench, (BackendError, InvalidRequest), Fault.REDIRECT):
        expect(not isinstance(error, BackendUnreachable), f"it followed the redirect: {error}")
        expect("elsewhere.invalid" in str(error), f"the error does not say where it leads: {str(error)!r}")


@RULES.rule(
    "errors.too-much",
    "An answer that is far too long, or unpacks to far too much, is cut off with a typed error.",
    remedy="Bound what you read: the transport of the build context stops at 64 MiB.",
    needs=Needs.SERVER,
)
def too_much(bench: AnyBench) -> None:
    """A compressed bomb and an oversized body."""
    way = bench.ways[0]
    for fault in (Fault.GZIP_BOMB, Fault.OVERSIZED_BODY):
        with bench.faulty(fault):
            ended = bench.ended(way)
            ended.what = f"{way}, while the server shows {fault.name}"
            ended.raised(BackendError)


@RULES.rule(
    "errors.no-retry",
    "A backend sends a request once: retrying is the hub's, within its budget.",
    remedy="Remove the retries of your backend and of its client (for LangChain and vendor clients: max_retries=0).",
    needs=Needs.SERVER,
)
def no_retry(bench: AnyBench) -> None:
    """What fails has been asked for once, however it failed."""
    faults: list[tuple[Fault, dict[str, Any]]] = [
        (Fault.SERVER_ERROR, {}),
        (Fault.RATE_LIMITED, {"retry_after": 0}),
        (Fault.QUEUE_FULL, {}),
        (Fault.HTML_PAGE, {}),
    ]
    for fault, options in faults:
        for way in bench.ways:
            with bench.faulty(fault, **options) as active:
                bench.ended(way)
                expect(active.hits == 1, f"{way} was sent {active.hits} times, while the server showed {fault.name}")


@RULES.rule(
    "errors.backend",
    "Every error says whose it is: `backend` is the name of the backend, not of the plugin or of another.",
    remedy="Set error.backend to config.name (HttpBackend and EngineBackend do) and keep no name from elsewhere.",
    needs=Needs.SERVER,
)
def backend_named(bench: AnyBench) -> None:
    """Over errors of every kind."""
    for fault in (Fault.REFUSE, Fault.BAD_REQUEST, Fault.SERVER_ERROR, Fault.HTML_PAGE, Fault.CLOSE_BEFORE_HEADERS):
        for error in _all_raise(bench, HubError, fault):
            expect(
                error.backend == BACKEND,
                f"while the server showed {fault.name}, {type(error).__name__}.backend was {error.backend!r}, not {BACKEND!r}",
            )


@RULES.rule(
    "errors.pickle",
    "Errors survive pickling, with what they tell.",
    remedy="Raise the errors of llm_hub.errors, with plain data in them; give classes of your own a __reduce__.",
    needs=Needs.SERVER,
)
def pickled(bench: AnyBench) -> None:
    """There and back."""
    for fault in (Fault.REFUSE, Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.HTML_PAGE):
        with bench.faulty(fault):
            error = bench.ended(bench.ways[0]).raised(HubError)
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        expect(
            type(back) is type(error) and str(back) == str(error) and vars(back).keys() == vars(error).keys(),
            f"{error!r} came back as {back!r}",
        )


@RULES.rule(
    "errors.model-not-found",
    "An unknown model is ModelNotFound with its name, and by way of the hub with the models that there are.",
    remedy="Raise ModelNotFound(model=...) for the server's 404, and list in models() what there is.",
)
def model_not_found(bench: AnyBench) -> None:
    """Asked for by each way."""
    if not bench.requirements.lists_models:
        not_here("the requirements say that it does not know its models (lists_models)")
    for way in bench.ways:
        ended = bench.ended(way, model="no-such-model")
        ended.what = f"{way} with the model 'no-such-model'"
        error = ended.raised(ModelNotFound)
        expect(
            error.model == "no-such-model" or "no-such-model" in str(error),
            f"the error does not name the model: {str(error)!r}",
        )
