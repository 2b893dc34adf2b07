"""The engine: chats answered by llama.cpp in this process, several at once."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from importlib import metadata
from importlib.util import find_spec

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import Progress
from llm_hub.errors import BackendFailed, HubError, InvalidRequest, ModelNotFound, ProtocolError
from llm_hub.forced_calls import ForcedCalls, is_forced
from llm_hub.gguf import Header
from llm_hub.messages import ChatChunk, ChatRequest, Message
from llm_hub.openai_decoding import ChunkStream
from llm_hub.openai_dialect import classify_error
from llm_hub_llamacpp.loading import Loaded, Plan, abandon_all, load, make_plan
from llm_hub_llamacpp.naming import ALIASES, canonical_name, installed_models
from llm_hub_llamacpp.requests import FEATURES, encode
from llm_hub_llamacpp.settings import DEFAULT_MODEL, PROFILES, LlamaCppSettings, Profile

__all__ = ["LlamaCppEngine"]

_json = msgspec.json.Decoder().decode
_LISTED = 50  # models whose files are looked at for a list


class LlamaCppEngine:
    """Serves the model that is configured; where none is, whichever is asked for. Fulfils CallbackEngine.

    A model is loaded when it is first needed, once for all who wait for it; a load that failed is tried again by the next
    call.
    """

    def __init__(
        self,
        settings: LlamaCppSettings,
        *,
        name: str,
        model: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self.model = None if model is None else canonical_name(model)
        self._progress = progress
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, tuple[Loaded, Header]] = OrderedDict()
        self._loads: dict[str, Future[None]] = {}

    @property
    def features(self) -> frozenset[Feature]:
        return FEATURES if self.settings.mmproj is not None else FEATURES - {Feature.IMAGES}

    def _name_of(self, model: str | None) -> str:
        """The canonical name of the model that is meant. Raises ModelNotFound for one that is not served here."""
        if model is None:
            return self.model or DEFAULT_MODEL
        known = canonical_name(model)
        if self.model is not None and known != self.model:
            raise ModelNotFound(
                f"it serves {self.model!r} and not {model!r}",
                model=model,
                available=(self.model,),
                hint=f'Define another backend for it: [backends.NAME] plugin = "llamacpp", models = {{ text = "{model}" }}.',
            )
        return known

    # -- loading ------------------------------------------------------------------------------------------------------

    def load(self, model: str | None, call: Call) -> None:
        self._ready(self._name_of(model), call)

    def _ready(self, name: str, call: Call) -> tuple[Loaded, Header]:
        """The model, loaded. Whoever comes while it loads waits for that load and shares its failure."""
        while True:
            with self._lock:
                found = self._loaded.get(name)
                if found is not None:
                    self._loaded.move_to_end(name)
                    return found
                running = self._loads.get(name)
                if running is None:
                    mine = self._loads[name] = Future[None]()
            if running is None:
                self._load(name, mine)
            else:
                _wait(running, call, self.name)

    def _load(self, name: str, done: Future[None]) -> None:
        try:
            plan, header = make_plan(name, self.settings)
            loaded = load(plan, lambda fraction: self._tell(name, fraction))
            self._tell(name, 1.0, done=True)
        except BaseException as error:
            with self._lock:
                del self._loads[name]
            done.set_exception(error)
            raise
        with self._lock:
            del self._loads[name]
            self._loaded[name] = (loaded, header)
            while len(self._loaded) > self.settings.models_in_memory:
                self._loaded.popitem(last=False)  # out of memory when the last call that uses it ends
        done.set_result(None)

    def _tell(self, name: str, fraction: float | None, *, done: bool = False) -> None:
        if self._progress is not None:
            self._progress(Progress(backend=self.name, doing=f"loading {name}", fraction=fraction, done=done))

    # -- generating ---------------------------------------------------------------------------------------------------

    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        name = self._name_of(request.model)
        loaded, header = self._ready(name, call)
        body = encode(request, self.settings, self._profile(name), header)
        decoder = ChunkStream(n=request.n)
        if is_forced(request):
            emit = ForcedCalls(request, emit)
        failure: BaseException | None = None

        def take(event: bytes) -> bool:
            """Called by llama.cpp with each event; True stops it. It would swallow an exception."""
            nonlocal failure
            if call.cancelled:
                return True
            try:
                for chunk in decoder.add_object(_json(event)):
                    emit(chunk)
            except HubError as error:
                failure = decoder.broken(error)
            except msgspec.DecodeError as error:
                failure = ProtocolError(f"llama.cpp said what is no JSON: {error}")
                failure.__cause__ = error
            except BaseException as error:  # noqa: BLE001 - raised below, on this side of llama.cpp
                failure = error
            return failure is not None

        try:
            loaded.server.handle_chat_completions(body, take)
        except ValueError as error:
            raise InvalidRequest(f"llama.cpp refuses the request: {error}") from error
        except RuntimeError as error:
            raise classify_error(500, str(error), model=name) from error
        if failure is not None:
            raise failure
        call.check()
        for chunk in decoder.end():
            emit(chunk)

    def _profile(self, name: str) -> Profile:
        """How this model likes to be asked: the settings, else what is known of it."""
        profile = PROFILES.get(name, Profile())
        settings = self.settings
        return Profile(
            system_prompt=profile.system_prompt if settings.system_prompt is None else settings.system_prompt,
            temperature=profile.temperature if settings.temperature is None else settings.temperature,
            max_tokens=profile.max_tokens,
        )

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        names = [self.model] if self.model is not None else installed_models()[:_LISTED]
        found = []
        for name in names:
            call.check()
            try:
                found.append(self._info(name, *make_plan(name, self.settings)))
            except HubError:
                if self.model is not None:
                    raise
                continue  # another one in a cache, which is damaged or does not fit these settings
        return tuple(found)

    def _info(self, name: str, plan: Plan, header: Header) -> ModelInfo:
        return ModelInfo(
            name=name,
            capabilities=frozenset({Capability.TEXT, *([Capability.VISION] if self.settings.mmproj else [])}),
            features=self._features_of(header),
            context_length=plan.context,
            loaded=name in self._loaded,
            size=plan.size,
            aliases=ALIASES.get(name, ()),
        )

    def _features_of(self, header: Header) -> frozenset[Feature]:
        lacking = set()
        if not header.knows_tools:
            lacking |= {Feature.TOOLS, Feature.TOOL_CHOICE}
        if not header.knows_thinking:
            lacking.add(Feature.REASONING)
        if not header.knows_effort:
            lacking.add(Feature.REASONING_EFFORT)
        return self.features - lacking

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        reached: Rung | None = None
        version = None
        try:
            if find_spec("xllamacpp") is None:
                raise BackendFailed("xllamacpp is not installed", hint="Install it: pip install xllamacpp")
            version = metadata.version("xllamacpp")
            reached = Rung.ALIVE
            name = self._name_of(model)
            if rung > Rung.ALIVE:
                make_plan(name, self.settings)
                reached = Rung.MODEL_PRESENT
            if rung > Rung.MODEL_PRESENT:
                self._ready(name, call)
                reached = Rung.LOADED
            if rung > Rung.LOADED:
                ping = ChatRequest(messages=(Message(role="user", content="ping"),), model=name, max_tokens=1)
                self.generate(ping, call, _ignore)
                reached = Rung.GENERATING
        except HubError as error:
            call.check()
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint, version=version)
        return Probe(rung=reached, wanted=rung, version=version)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the models; each goes out of memory when no other backend and no call uses it."""
        with self._lock:
            self._loaded.clear()

    def forked(self) -> None:
        """In the child of a fork: the models must be loaded anew, which the next call does."""
        abandon_all()
        self._lock = threading.Lock()
        self._loaded = OrderedDict()
        self._loads = {}


def _ignore(chunk: ChatChunk) -> None:
    """Nobody reads the answer to a probe."""


def _wait(running: Future[None], call: Call, name: str) -> None:
    """Wait for somebody else's load, or until the call is given up. Raises what the load failed with."""
    woken = threading.Event()
    token = call.cancellation()
    running.add_done_callback(lambda _: woken.set())
    token.subscribe(woken, woken.set)
    woken.wait()
    token.unsubscribe(woken)
    call.check(name)
    error = running.exception()
    if error is not None:
        raise copy.copy(error) from error  # each thread its own, with its own traceback
