"""llama.cpp in this process: one model, loaded when it is first needed, generating for several calls at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import Progress
from llm_hub.errors import BackendFailed, HubError, InvalidRequest, ModelNotFound, UnsupportedFeature
from llm_hub.messages import ChatChunk, ChatRequest, Message, ResponseFormat
from llm_hub.openai_dialect import ChunkStream, classify_error, encode_body
from llm_hub_llamacpp.gguf import Header, read_header
from llm_hub_llamacpp.models import BUILT_IN, locate
from llm_hub_llamacpp.settings import LlamaCppSettings

__all__ = ["FEATURES", "LlamaEngine", "parameters"]

FEATURES = frozenset(
    {
        Feature.SYSTEM,
        Feature.TOOLS,
        Feature.TOOL_CHOICE,
        Feature.JSON_OBJECT,
        Feature.JSON_SCHEMA,
        Feature.GRAMMAR,
        Feature.CHOICE,
        Feature.REASONING,
        Feature.LOGPROBS,
        Feature.SEED,
        Feature.MULTIPLE_CHOICES,
        Feature.PENALTIES,
        Feature.IMAGES,
    }
)

_CONTEXT = 8192  # tokens for each call, where neither the settings nor the model ask for less
_BUILT_IN_SYSTEM = "You are a helpful assistant."
"""With the system prompt of its own chat template, the built-in model answers the capital of France with nonsense."""

_BUILT_IN_SAMPLING = {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 512}
"""So small a model is at its best when it says the likeliest; the penalty and the limit keep it from going in circles."""


class LlamaEngine:
    """A CallbackEngine. `name` is the model as configured; `report` is told while it loads."""

    def __init__(
        self, name: str, settings: LlamaCppSettings, *, backend: str, report: Callable[[Progress], None]
    ) -> None:
        self.model = name
        self.settings = settings
        self.features = FEATURES if settings.mmproj else FEATURES - {Feature.IMAGES}
        self._backend = backend
        self._report = report
        self._server: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    # -- loading ------------------------------------------------------------------------------------------------------

    def _header(self) -> tuple[Path, Header]:
        path = locate(self.model)
        return path, read_header(path)

    def load(self, model: str | None, call: Call) -> None:
        """Load the model, once. Others that ask meanwhile wait."""
        self._check_name(model)
        if self._server is not None:
            return
        with self._lock:
            if self._server is None:
                self._server = self._start()

    def _check_name(self, model: str | None) -> None:
        if model not in (None, self.model):
            raise ModelNotFound(
                f"it serves {self.model!r} alone, not {model!r}",
                model=model,
                available=(self.model,),
                hint=f"Set models of this backend to it, or define a second backend with plugin = {'llamacpp'!r}.",
            )

    def _start(self) -> Any:
        import xllamacpp

        path, header = self._header()
        settings = self.settings
        doing = f"loading {path.name}"
        self._report(Progress(backend=self._backend, doing=doing))
        # A socket in a private folder, in place of the TCP port that the server otherwise opens to the whole machine.
        self._folder = tempfile.TemporaryDirectory(prefix="llm-hub-")
        made = parameters(xllamacpp, path, header, settings)
        made.hostnames = [str(Path(self._folder.name) / "llama.sock")]
        try:
            server = xllamacpp.Server(made)
        except (RuntimeError, ValueError) as error:
            raise BackendFailed(
                f"llama.cpp cannot load {path.name} ({error})",
                hint="Is there enough memory? A smaller n_ctx or n_parallel needs less. Does its version know this architecture"
                f" ({header.architecture})? Upgrade it: pip install -U xllamacpp",
            ) from error
        self._report(Progress(backend=self._backend, doing=doing, fraction=1.0, done=True))
        return server

    # -- answers ------------------------------------------------------------------------------------------------------

    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        """Pass the pieces of the answer on as llama.cpp makes them."""
        body = self._body(request)
        stream = ChunkStream(n=request.n)
        failed: list[BaseException] = []

        def take(piece: Any) -> bool:
            """Called by llama.cpp, which swallows what is raised here: True stops it."""
            try:
                said = piece.get("error")
                if said is not None:
                    raise _complaint(said)
                for chunk in stream.add_object(piece):
                    emit(chunk)
            except BaseException as error:  # noqa: BLE001 - carried past llama.cpp, and raised below
                failed.append(error)
                return True
            return call.cancelled

        try:
            self._server.handle_chat_completions(body, take)
        except (RuntimeError, ValueError) as error:
            raise _refused(str(error)) from error
        if failed:
            raise failed[0]
        call.check()
        for chunk in stream.end():
            emit(chunk)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        if request.n > self.settings.n_parallel:
            raise InvalidRequest(
                f"it generates {self.settings.n_parallel} answers at once, not {request.n}",
                hint="Ask for fewer choices, or raise n_parallel of this backend.",
            )
        system = self._system_prompt()
        if system and all(message.role != "system" for message in request.messages):
            messages = (Message(role="system", content=system), *request.messages)
            request = msgspec.structs.replace(request, messages=messages)
        body = encode_body(request, stream=True, reasoning_field="reasoning_content")
        body.pop("model", None)
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if self.model == BUILT_IN:
            body = {**_BUILT_IN_SAMPLING, **body}
        if request.temperature is None and self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        if request.reasoning is not None:
            # `thinking` is what templates without a switch of llama.cpp's own read.
            wanted = bool(request.reasoning)
            body["chat_template_kwargs"] = {
                **dict(body.get("chat_template_kwargs", {})),
                "enable_thinking": wanted,
                "thinking": wanted,
            }
        _put_format(body, request.response_format)
        return body

    def _system_prompt(self) -> str | None:
        own = self.settings.system_prompt
        return own if own is not None else (_BUILT_IN_SYSTEM if self.model == BUILT_IN else None)

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """The one model that is configured, if its file is there."""
        _, header = self._header()
        return (
            ModelInfo(
                name=self.model,
                capabilities=frozenset({Capability.TEXT, *([Capability.VISION] if self.settings.mmproj else [])}),
                context_length=context(self.settings, header),
                loaded=self._server is not None,
                size=header.size,
            ),
        )

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """Alive is this process; present is a file with a sound head; loading and one token prove the rest."""
        reached = Rung.ALIVE
        try:
            if rung > Rung.ALIVE:
                self._check_name(model)
                self._header()
                reached = Rung.MODEL_PRESENT
            if rung >= Rung.LOADED:
                self.load(model, call)
                reached = Rung.LOADED
            if rung >= Rung.GENERATING:
                asked = ChatRequest(messages=(Message(role="user", content="Hi"),), max_tokens=1)
                self.generate(asked, call, lambda chunk: None)
                reached = Rung.GENERATING
        except HubError as error:
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint, version=_version())
        return Probe(rung=reached, wanted=rung, version=_version())

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self._server = None
            folder, self._folder = self._folder, None
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.cleanup()

    def forked(self) -> None:
        """In the child of a fork llama.cpp's threads are gone: forget the model without freeing it, and load it anew."""
        if self._server is not None:
            _LEFT_BY_FORKS.append((self._server, self._folder))
        self._lock = threading.Lock()
        self._server = self._folder = None


_LEFT_BY_FORKS: list[Any] = []


def context(settings: LlamaCppSettings, header: Header) -> int:
    """The tokens of context that each call gets."""
    return settings.n_ctx or min(header.context_length or _CONTEXT, _CONTEXT)


def parameters(xllamacpp: Any, path: Path, header: Header, settings: LlamaCppSettings) -> Any:
    """The parameters of llama.cpp for this model. Raises InvalidRequest, ModelNotFound."""
    if settings.n_ctx is not None and header.context_length is not None and settings.n_ctx > header.context_length:
        raise InvalidRequest(
            f"n_ctx is {settings.n_ctx}, but {path.name} has a context of {header.context_length} tokens",
            hint=f"Set n_ctx to {header.context_length} or less.",
        )
    made = xllamacpp.CommonParams()
    made.model.path = str(path)
    made.n_parallel = settings.n_parallel
    made.n_ctx = context(settings, header) * settings.n_parallel  # llama.cpp divides it among the calls
    made.n_gpu_layers = settings.n_gpu_layers
    made.cpuparams.n_threads = settings.threads or _cores()
    made.n_threads_http = 2
    made.verbosity = 0
    made.warmup = False
    made.cache_ram_mib = 0
    made.fit_params = False
    made.ui = False
    made.endpoint_slots = False
    if settings.mmproj is not None:
        projector = Path(settings.mmproj).expanduser()
        if not projector.is_file():
            raise ModelNotFound(f"there is no projector file {projector}", hint="Correct mmproj of this backend.")
        read_header(projector)
        made.mmproj.path = str(projector)
    if settings.chat_template is not None:
        template = Path(settings.chat_template).expanduser()
        try:
            made.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the chat template {template} cannot be read ({error})") from error
    return made


def _cores() -> int:
    """The cores that this process may run on."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))


def _version() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None


def _put_format(body: dict[str, Any], wanted: ResponseFormat | None) -> None:
    if wanted is None:
        return
    if wanted.type == "grammar":
        body["grammar"] = wanted.pattern
    elif wanted.type == "choice":
        texts = " | ".join(msgspec.json.encode(text).decode() for text in wanted.choices)
        body["grammar"] = f"root ::= {texts}"


def _complaint(said: Any) -> HubError:
    """The typed error for an error object of llama.cpp."""
    if not isinstance(said, dict):
        return BackendFailed(f"llama.cpp failed: {said}")
    return classify_error(
        said.get("code"),
        str(said.get("message", said)),
        type=said.get("type"),
        prompt_tokens=said.get("n_prompt_tokens"),
        context=said.get("n_ctx"),
    )


def _refused(message: str) -> HubError:
    """The typed error for what llama.cpp raises before it begins."""
    if "image input is not supported" in message or "mmproj" in message:
        return UnsupportedFeature(
            "its model does not see images",
            features=("images",),
            hint="Set mmproj to the projector file of a model that does.",
        )
    return InvalidRequest(f"llama.cpp refused the request: {message[:400]}", hint="Correct the request.")
