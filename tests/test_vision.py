"""Vision through the hub, in both worlds: describing by fakes of both servers, reading by engines, each on its own route."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageDraw

from llm_hub import CancelToken, Feature, Hub, ImagePart, Message, TextPart, hookimpl
from llm_hub.call import Call
from llm_hub.capabilities import Capability, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.engine import EngineBackend
from llm_hub.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendUnreachable,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NoBackend,
    PluginBroken,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatResponse, ReadRequest, ReadResponse, Word
from llm_hub.selection import Target
from llm_hub.testing import FakeOllama, FakeVLLM, Fault, ReplayServer, draw
from llm_hub.testing.recordings import load

CIRCLE = "A red circle on a white background."
Ask = Callable[..., ChatResponse]


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def environ(vllm: FakeVLLM, ollama: FakeOllama) -> dict[str, str]:
    return {
        "VLLM_BASE_URL": vllm.url,
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_VISION_MODEL": "hub-test-vlm",
        "VLLM_VISION_MODEL": "hub-test-vlm",
    }


@pytest.fixture(params=["vllm", "ollama"])
def hub(request: pytest.FixtureRequest, environ: dict[str, str]) -> Iterator[Hub]:
    with Hub.from_env({**environ, "LLM_PROVIDER": request.param}) as made:
        yield made


@pytest.fixture
def server(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> Any:
    return vllm if hub.explain("vision").backend == "vllm" else ollama


@pytest.fixture(params=["describe", "adescribe", "stream", "astream"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Describe in each of the four ways; the whole answer."""

    def go(
        hub: Hub, images: Any, prompt: Any = "What is in this picture?", *, handle: Any = None, **options: Any
    ) -> ChatResponse:
        vision = hub.vision(**(handle or {}))
        if request.param == "describe":
            return vision.describe(images, prompt, **options)
        if request.param == "stream":
            with vision.stream(images, prompt, **options) as stream:
                assert "".join(chunk.text for chunk in stream) == stream.text
                return stream.response

        async def later() -> ChatResponse:
            if request.param == "adescribe":
                return await vision.adescribe(images, prompt, **options)
            async with vision.astream(images, prompt, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return asyncio.run(later())

    return go


# -- describing ---------------------------------------------------------------------------------------------------------


def test_an_image_is_described_from_a_path_bytes_a_data_uri_or_pillow(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(draw())
    uri = "data:image/png;base64," + base64.b64encode(draw()).decode()
    for image in (str(file), file, draw(), uri, Image.open(io.BytesIO(draw())), ImagePart(draw())):
        assert ask(hub, image).text == CIRCLE
    response = ask(hub, file, "What colour is it?", temperature=0.0, max_tokens=20)
    assert (response.text, response.finish_reason) == ("Red.", "stop")
    assert response.served_by is not None
    assert response.served_by.model == "hub-test-vlm"
    assert response.timings.total is not None


def test_several_images_are_seen_in_their_order(hub: Hub, ask: Ask) -> None:
    answer = ask(hub, [draw(), draw("blue", "square")], "Describe the images.")
    assert answer.text == f"First: {CIRCLE} Second: A blue square on a white background."


def test_ollama_is_sent_bare_base64_and_vllm_data_uris(
    environ: dict[str, str], vllm: FakeVLLM, ollama: FakeOllama
) -> None:
    bare = base64.b64encode(draw()).decode()
    with Hub.from_env(environ) as hub:
        hub.vision(backend="ollama").describe(draw(), "What is this?")
        hub.vision(backend="vllm").describe(draw(), "What is this?")
    assert ollama.requests[-1].json["messages"][0]["images"] == [bare]
    parts = vllm.requests[-1].json["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in parts if part["type"] == "image_url"] == [
        f"data:image/png;base64,{bare}"
    ]


def test_a_photo_lying_on_its_side_reaches_the_model_upright(hub: Hub, server: Any, ask: Ask) -> None:
    image = Image.new("RGB", (64, 32), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 31, 15), fill="red")
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.rotate(90, expand=True).save(out, "JPEG", exif=exif, quality=95)
    ask(hub, out.getvalue())
    sent = Image.open(io.BytesIO(_sent_image(server)))
    assert sent.size == (64, 32)
    assert not sent.getexif()
    red: Any = sent.convert("RGB").getpixel((4, 4))
    assert red[0] > 200 > 60 > red[1]


def _sent_image(server: Any) -> bytes:
    message = server.requests[-1].json["messages"][0]
    if "images" in message:
        return base64.b64decode(message["images"][0])
    url: str = next(part for part in message["content"] if part["type"] == "image_url")["image_url"]["url"]
    return base64.b64decode(url.partition(",")[2])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"no image", "is not an image"),
        (draw()[:60], "is cut off"),
        ("http://127.0.0.1:9/a.png", "fetches no URLs"),
        ("nowhere.png", "cannot be read"),
        ([draw(), b"<svg/>"], "image 2 is a drawing"),
        ([], "no image is given"),
    ],
)
def test_a_bad_image_is_refused_and_nothing_is_sent(
    hub: Hub, vllm: FakeVLLM, ollama: FakeOllama, ask: Ask, image: Any, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ask(hub, image)
    assert not [one for one in (*vllm.requests, *ollama.requests) if one.method == "POST" and "chat" in one.path]


@pytest.mark.parametrize("how", ["vision", "text"])
def test_a_bad_image_in_a_conversation_is_refused_too(hub: Hub, server: Any, how: str) -> None:
    message = Message(role="user", content=(ImagePart(draw()[:60]), TextPart("What is this?")))
    with pytest.raises(InvalidRequest, match="the image is cut off"):
        hub.conversation(how, model="hub-test-vlm").chat([message])


@pytest.mark.parametrize("prompt", ["", "  ", None, ["What?"], b"What?"])
def test_without_a_prompt_nothing_is_asked(hub: Hub, ask: Ask, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        ask(hub, "nowhere.png", prompt)


def test_conversations_about_images_go_on(hub: Hub) -> None:
    first = Message(role="user", content=(ImagePart(draw()), TextPart("What colour is it?")))
    vision = hub.conversation("vision")
    answer = vision.chat([first])
    assert answer.text == "Red."
    assert vision.chat([first, answer.message, Message(role="user", content="What shape is it?")]).text


def test_a_deadline_counts_from_the_call_and_a_token_cancels(hub: Hub, server: Any, ask: Ask) -> None:
    server.fault(Fault.HANG_BEFORE_HEADERS)
    with pytest.raises(DeadlineExceeded):
        ask(hub, draw(), timeout=0.3)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        ask(hub, draw(), cancel=token)


def test_a_stream_that_breaks_off_is_interrupted_with_what_arrived(hub: Hub, server: Any) -> None:
    server.fault(Fault.END_WITHOUT_MARK, after=3)
    with pytest.raises(StreamInterrupted) as caught, hub.vision().stream(draw(), "What is in this picture?") as stream:
        for _ in stream:
            pass
    assert CIRCLE.startswith(caught.value.partial.strip())


def test_a_stream_reads_its_images_when_it_begins(hub: Hub) -> None:
    stream = hub.vision().stream("nowhere.png", "What?")
    with pytest.raises(InvalidRequest, match=r"nowhere\.png"):
        next(stream)


def test_a_declared_fallback_describes(
    environ: dict[str, str], vllm: FakeVLLM, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with Hub.from_env({**environ, "LLM_VISION_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
        vllm.stop()
        response = ask(hub, draw())
        assert response.text == CIRCLE
        assert response.served_by is not None
        assert (response.served_by.backend, response.served_by.fallback) == ("ollama", True)
        with pytest.raises(BackendUnreachable):
            ask(hub, draw(), handle={"backend": "vllm"})


def test_without_a_model_for_vision_the_only_one_that_sees_is_taken(
    environ: dict[str, str], ollama: FakeOllama
) -> None:
    environ = {name: value for name, value in environ.items() if name != "OLLAMA_VISION_MODEL"}
    with Hub.from_env({**environ, "LLM_VISION_PROVIDER": "ollama"}) as hub:
        able = [
            model.name
            for model in hub.models("ollama", capability="vision")
            if model.capabilities is None or Capability.VISION in model.capabilities
        ]
        if len(able) == 1:
            assert hub.vision().describe(draw(), "What is in this picture?").text == CIRCLE
        else:
            with pytest.raises(Exception, match="OLLAMA_VISION_MODEL"):
                hub.vision().describe(draw(), "What is in this picture?")


# -- where nothing sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [False, True])
def test_images_on_a_text_route_without_vision_name_the_way_to_vision(
    environ: dict[str, str], ollama: FakeOllama, listed: bool
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "ollama", "OLLAMA_MODEL": "smollm2:135m"}) as hub:
        if listed:
            hub.models("ollama")
        message = Message(role="user", content=(ImagePart(draw()), TextPart("What is this?")))
        with pytest.raises(UnsupportedFeature) as caught:
            hub.text().chat([message])
        assert caught.value.features == ("images",)
        assert "hub.vision()" in str(caught.value)
        assert 'HubChatModel(hub, capability="vision")' in str(caught.value)
        # The route of vision is another one, with another model.
        assert hub.conversation("vision").chat([message]).text == CIRCLE


def test_a_model_that_does_not_see_is_refused_with_what_to_do(hub: Hub, environ: dict[str, str], ask: Ask) -> None:
    with Hub.from_env({**environ, "LLM_VISION_PROVIDER": "ollama", "OLLAMA_VISION_MODEL": "smollm2:135m"}) as other:
        with pytest.raises(UnsupportedFeature, match=r"ollama: .*LLM_VISION_DESCRIBE_PROVIDER"):
            ask(other, draw())


def test_who_only_reads_does_not_describe_and_the_other_way_round(environ: dict[str, str], ask: Ask) -> None:
    with Hub.from_env({**environ, "LLM_VISION_PROVIDER": "tesseract"}) as hub:
        with pytest.raises(UnsupportedFeature, match=r"'tesseract' cannot describe images.*hub\.vision\(\)\.read"):
            ask(hub, draw())
        with pytest.raises(
            UnsupportedFeature, match=r"'ollama' cannot read the text.*LLM_VISION_READ_PROVIDER=tesseract"
        ):
            hub.vision(backend="ollama").read(draw())


# -- reading ------------------------------------------------------------------------------------------------------------


class Reader:
    """An engine that reads what it was told, and may be slow about it."""

    features = frozenset({Feature.READ})

    def __init__(self) -> None:
        self.requests: list[ReadRequest] = []
        self.threads: set[str] = set()
        self.hold: threading.Event | None = None
        self.cancelled = threading.Event()

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name="reader", capabilities=frozenset({Capability.VISION})),)

    def load(self, model: str | None, call: Call) -> None:
        pass

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=rung, wanted=rung)

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        self.requests.append(request)
        self.threads.add(threading.current_thread().name)
        if self.hold is not None:
            while not self.hold.wait(0.01):
                if call.cancelled:
                    self.cancelled.set()
                    break
        word = Word(text="words", box=(1, 2, 30, 40), confidence=0.5, line=0, paragraph=0)
        return ReadResponse(text="words", words=(word,), width=64, height=64, languages=request.languages)

    def close(self) -> None:
        pass


class ReaderPlugin:
    def __init__(self, reader: Any, *, workers: int = 2, queue: int = 4) -> None:
        self.reader = reader
        self.bounds = {"workers": workers, "queue": queue}

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(
            api_version="1.0", features=frozenset({Feature.READ}), default_models={Capability.VISION: "reader"}
        )

    @hookimpl
    def llm_hub_vision(self, config: BackendConfig, context: BuildContext) -> EngineBackend:
        return EngineBackend(self.reader, name=config.name, **self.bounds)


Read = Callable[..., ReadResponse]


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def reading(reader: Reader, environ: dict[str, str]) -> Iterator[Hub]:
    environ = {**environ, "LLM_PROVIDER": "ollama", "LLM_VISION_READ_PROVIDER": "reader"}
    with Hub.from_env(environ, plugins={"reader": ReaderPlugin(reader)}) as hub:
        yield hub


@pytest.fixture(params=["read", "aread"])
def read(request: pytest.FixtureRequest) -> Read:
    def go(hub: Hub, image: Any, *, handle: Any = None, **options: Any) -> ReadResponse:
        vision = hub.vision(**(handle or {}))
        if request.param == "read":
            return vision.read(image, **options)
        return asyncio.run(vision.aread(image, **options))

    return go


def test_reading_and_describing_resolve_apart(reading: Hub, reader: Reader, read: Read, ollama: FakeOllama) -> None:
    response = read(reading, draw(), languages=["de", "eng"], options={"layout": "line"})
    assert (response.text, str(response), response.words[0].box) == ("words", "words", (1, 2, 30, 40))
    assert response.served_by is not None
    assert (response.served_by.backend, response.served_by.model) == ("reader", "reader")
    assert response.timings.total is not None
    (request,) = reader.requests
    assert (request.image.data, request.languages, dict(request.options)) == (draw(), ("de", "eng"), {"layout": "line"})
    assert reading.vision().describe(draw(), "What is in this picture?").text == CIRCLE
    assert len(reader.requests) == 1, "a model that describes was asked, not this one"


def test_one_language_need_not_be_a_list(reading: Hub, reader: Reader, read: Read) -> None:
    read(reading, draw(), languages="de")
    assert reader.requests[-1].languages == ("de",)


def test_an_engine_reads_in_threads_of_its_own(reading: Hub, reader: Reader, read: Read) -> None:
    read(reading, draw())
    assert reader.threads
    assert threading.current_thread().name not in reader.threads


def test_a_bad_image_is_not_read(reading: Hub, reader: Reader, read: Read) -> None:
    for image in (b"no image", "https://example.org/a.png", draw()[:60], [draw()]):
        with pytest.raises(InvalidRequest):
            read(reading, image)
    assert not reader.requests


def test_a_deadline_and_a_token_end_the_wait_at_once_and_tell_the_engine(
    reading: Hub, reader: Reader, read: Read
) -> None:
    reader.hold = threading.Event()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        read(reading, draw(), timeout=0.5)
    assert reader.cancelled.wait(3)
    reader.cancelled.clear()
    token = CancelToken()
    threading.Timer(0.5, token.cancel).start()
    with pytest.raises(Cancelled):
        read(reading, draw(), cancel=token)
    assert reader.cancelled.wait(3)
    assert time.monotonic() - began < 6  # without a deadline and a token it would wait for ever


def test_more_than_may_wait_is_refused_and_not_piled_up(environ: dict[str, str], reader: Reader) -> None:
    reader.hold = threading.Event()
    plugin = ReaderPlugin(reader, workers=1, queue=1)
    with Hub.from_env({**environ, "LLM_VISION_READ_PROVIDER": "reader"}, plugins={"reader": plugin}) as hub:

        async def many() -> list[Any]:
            calls = [asyncio.ensure_future(hub.vision().aread(draw())) for _ in range(5)]
            done, _ = await asyncio.wait(calls, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            assert done
            await asyncio.sleep(0.05)
            assert reader.hold is not None
            reader.hold.set()
            return await asyncio.gather(*calls, return_exceptions=True)

        found = asyncio.run(many())
    assert sum(isinstance(one, ReadResponse) for one in found) == 2
    assert sum(isinstance(one, BackendOverloaded) for one in found) == 3


def test_with_no_reader_the_error_says_what_to_install(environ: dict[str, str], read: Read) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "ollama", "LLM_HUB_PLUGINS": "ollama,vllm"}) as hub:
        with pytest.raises(Exception, match="tesseract") as caught:
            read(hub, draw())
    assert "LLM_HUB_PLUGINS" in str(caught.value)


def test_the_default_reader_is_chosen_without_asking_whether_ollama_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="llm_hub"), Hub.from_env({}) as hub:
        decision = hub.explain("vision", operation="read")
    assert (decision.backend, decision.model, decision.rule) == ("tesseract", "tesseract", 7)
    assert not decision.warnings
    assert "does not answer" not in caplog.text


def test_a_backend_that_does_neither_half_is_a_broken_plugin(environ: dict[str, str], read: Read) -> None:
    class Blind(Reader):
        features = frozenset({Feature.SEED})

    with Hub.from_env(environ, plugins={"blind": ReaderPlugin(Blind())}) as hub:
        with pytest.raises(PluginBroken, match="hold neither Feature.IMAGES nor Feature.READ"):
            read(hub, draw(), handle={"backend": "blind"})


def test_a_backend_that_says_it_describes_must_be_able_to_chat(environ: dict[str, str]) -> None:
    class Speechless:
        features = frozenset({Feature.IMAGES})
        models = amodels = probe = aprobe = close = read = aread = lambda self: None

    class Plugin(ReaderPlugin):
        @hookimpl
        def llm_hub_manifest(self) -> PluginManifest:
            return PluginManifest(api_version="1.0", features=frozenset({Feature.IMAGES}))

        @hookimpl
        def llm_hub_vision(self, config: BackendConfig, context: BuildContext) -> Any:
            return Speechless()

    with Hub.from_env(environ, plugins={"speechless": Plugin(None)}) as hub:
        with pytest.raises(PluginBroken, match="lacks chat, achat, stream, astream.*TextBackend"):
            hub.vision(backend="speechless").describe(draw(), "What?")


def test_an_answer_can_be_written_as_json_and_tells_how_sure_it_is() -> None:
    words = (
        Word(text="ab", box=(0, 0, 9, 9), confidence=1.0, line=0, paragraph=0),
        Word(text="c", box=(9, 0, 19, 9), confidence=0.4, line=0, paragraph=0),
    )
    response = ReadResponse(text="ab c", words=words, width=20, height=20)
    assert response.confidence == pytest.approx(0.8)
    assert ReadResponse(text="", words=(), width=1, height=1).confidence is None
    assert json.loads(msgspec.json.encode(response))["words"][0]["box"] == [0, 0, 9, 9]


# -- what real servers said ---------------------------------------------------------------------------------------------


RECORDED = {
    "hubtest_vision_chat": CIRCLE,
    "hubtest_vision_colour": "Green.",
    "hubtest_vision_two_images": f"First: {CIRCLE} Second: A blue square on a white background.",
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("plugin", ["ollama", "vllm"])
def test_recorded_answers_come_through_the_hub(plugin: str, name: str) -> None:
    recording = load(Path(__file__).parent / "data" / "wire" / plugin / f"{name}.json")
    body = recording.request.json
    assert isinstance(body, dict)
    (message,) = body["messages"]
    prefix = plugin.upper()
    with ReplayServer([recording]) as server:
        variables = {f"{prefix}_BASE_URL": server.url, f"{prefix}_VISION_MODEL": body["model"]}
        with Hub.from_env({**variables, "LLM_VISION_PROVIDER": plugin}) as hub:
            if plugin == "ollama":
                images = [base64.b64decode(one) for one in message["images"]]
                answers = [hub.vision().describe(images, message["content"])]
                answers.append(asyncio.run(hub.vision().adescribe(images, message["content"])))
            else:  # its text comes before its images
                answers = [hub.conversation("vision").chat([message])]
                answers.append(asyncio.run(hub.conversation("vision").achat([message])))
    assert [answer.text for answer in answers] == [RECORDED[name]] * 2


def test_nobody_at_all_is_an_error_that_says_how_to_choose(ask: Ask) -> None:
    with Hub.from_env({"LLM_HUB_PLUGINS": "tesseract"}) as hub:
        with pytest.raises(NoBackend, match=r"nothing is configured for vision\.describe"):
            ask(hub, draw())


def test_where_vision_can_only_read_it_is_ready_and_either_half_can_be_asked_about_alone(vllm: FakeVLLM) -> None:
    environ = {"LLM_VISION_READ_PROVIDER": "reader", "LLM_VISION_DESCRIBE_PROVIDER": "reader"}
    with Hub.from_env(environ, plugins={"reader": ReaderPlugin(Reader())}) as hub:
        status = hub.status(["vision"])
        assert status.ready
        assert [(one.operation, one.decision and one.decision.backend) for one in status.routes] == [("read", "reader")]
        assert asyncio.run(hub.astatus(["vision.read"])).ready
        (described,) = hub.status(["vision.describe"]).routes
        assert (described.decision, described.error is not None) == (None, True)
    environ = {"LLM_VISION_DESCRIBE_PROVIDER": "vllm", "VLLM_BASE_URL": vllm.url}
    with Hub.from_env(environ) as hub:
        (route,) = hub.status(["vision"]).routes
        assert route.operation == "describe"


@pytest.mark.parametrize("repeatable", [True, False])
def test_what_an_engine_reads_when_its_epoch_is_drained_no_longer_is_read_anew_on_the_next(
    read: Read, repeatable: bool
) -> None:
    slow, quick = Reader(), Reader()
    slow.hold = threading.Event()
    plugins = {"slow": ReaderPlugin(slow), "quick": ReaderPlugin(quick)}
    with Hub.from_env({"LLM_VISION_READ_PROVIDER": "slow"}, plugins=plugins) as hub:

        def switch() -> None:
            until = time.monotonic() + 5
            while not slow.requests and time.monotonic() < until:
                time.sleep(0.005)
            hub._board.use({"vision.read": (Target("quick", None),)}, drain=0)

        thread = threading.Thread(target=switch)
        thread.start()
        if repeatable:
            served = read(hub, draw(), timeout=20).served_by
            assert served is not None
            assert (served.backend, served.epoch) == ("quick", 2)
        else:
            with pytest.raises(BackendFailed, match="closed while this call ran.*--drain"):
                read(hub, draw(), timeout=20, repeatable=False)
            assert not quick.requests
        thread.join()
        assert slow.cancelled.wait(5)
        assert all((one.failures, one.breaker, one.in_flight) == (0, "closed", 0) for one in hub.conditions())
