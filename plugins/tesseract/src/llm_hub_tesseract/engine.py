"""Tesseract as an engine: a bounded number of its instances, each used by one call at a time."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING, Any

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.errors import BackendFailed, HubError, InvalidRequest, ModelNotFound
from llm_hub.messages import ImagePart, ReadRequest, ReadResponse, Timings, Word
from llm_hub_tesseract.languages import canonical, find
from llm_hub_tesseract.plugin import MODEL
from llm_hub_tesseract.settings import LAYOUTS, TesseractSettings

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TesseractEngine"]

_FEATURES = frozenset({Feature.READ})
_RESOLUTION = 150  # dots per inch where a file names none that makes sense; it matters little, and Tesseract wants one
_LARGEST = 32_767  # pixels a side that Tesseract takes (INT16_MAX in its baseapi.cpp)
_OPTIONS = frozenset({"layout"})


class TesseractEngine:
    """Reads images with Tesseract; fulfils ReadingEngine.

    An instance of Tesseract belongs to one call at a time; those that are idle are kept, at most `workers` of them,
    because loading the data of a language takes 0.15 s. While one works, Python goes on (tesserocr releases the GIL).
    Tesseract notices a deadline within a word or the analysis of the layout, but not a cancellation: the caller of a
    cancelled call goes on at once, and the worker is free when its page is done or its deadline has passed.
    """

    def __init__(self, settings: TesseractSettings, *, workers: int = 4) -> None:
        self.settings = settings
        self._workers = workers
        self._idle: list[tuple[tuple[str, ...], Any]] = []  # the most recently used last
        self._lock = threading.Lock()
        self._closed = False

    @property
    def features(self) -> frozenset[Feature]:
        """It reads."""
        return _FEATURES

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """Tesseract itself; the languages are no models."""
        return (
            ModelInfo(
                name=MODEL,
                capabilities=frozenset({Capability.VISION}),
                features=_FEATURES,
                loaded=bool(self._idle),
            ),
        )

    def load(self, model: str | None, call: Call) -> None:
        """Nothing: what is loaded depends on the languages of the request."""
        if model not in (None, MODEL):
            raise ModelNotFound(f"it has no model {model!r}", model=model, available=(MODEL,))

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        """The text on the image.

        Raises UnsupportedFeature for a language that is not installed, InvalidRequest for an image that cannot be
        decoded and for unknown options (`layout` is one, as in the settings).
        """
        languages = canonical(request.languages or self.settings.languages)
        layout = _layout(request, self.settings)
        image, resolution = _decoded(request.image)
        began = time.monotonic()
        tesseract = self._take(languages)
        loaded = time.monotonic()
        try:
            text, words = _recognise(tesseract, image, resolution, layout, call)
        except BaseException:
            tesseract.End()
            raise
        self._give_back(languages, tesseract)
        return ReadResponse(
            text=text,
            words=words,
            width=image.width,
            height=image.height,
            languages=languages,
            model=MODEL,
            timings=Timings(load=loaded - began, generation=time.monotonic() - loaded),
        )

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """ALIVE: it can be imported. MODEL_PRESENT: the data of the languages are there. LOADED: they load. GENERATING: it reads a word."""
        reached: Rung | None = None
        detail, hint, version = "", None, None
        try:
            version = _library().tesseract_version().split()[1]
            reached = Rung.ALIVE
            if rung >= Rung.MODEL_PRESENT:
                self.load(model, call)
                languages = canonical(self.settings.languages)
                find(languages, self.settings.tessdata)
                reached = Rung.MODEL_PRESENT
            if rung >= Rung.LOADED:
                self._give_back(languages, self._take(languages))
                reached = Rung.LOADED
            if rung >= Rung.GENERATING:
                answer = self.read(ReadRequest(image=_ping(), options={"layout": "line"}), call)
                if answer.text != "ping":
                    raise BackendFailed(f"it read {answer.text!r} where 'ping' is written")
                reached = Rung.GENERATING
        except HubError as error:
            detail, hint = error.message, error.hint
        return Probe(rung=reached, wanted=rung, detail=detail, hint=hint, version=version)

    # -- instances ----------------------------------------------------------------------------------------------------

    def _take(self, languages: tuple[str, ...]) -> Any:
        with self._lock:
            for at in range(len(self._idle) - 1, -1, -1):
                if self._idle[at][0] == languages:
                    return self._idle.pop(at)[1]
        library = _library()
        folder = find(languages, self.settings.tessdata)
        try:
            return library.PyTessBaseAPI(path=f"{folder}/", lang="+".join(languages), psm=LAYOUTS["page"])
        except RuntimeError as error:
            raise BackendFailed(
                f"Tesseract does not load {', '.join(languages)} from {folder}: {error}",
                hint="Is a traineddata file damaged, or made for another version? Install it again.",
            ) from error

    def _give_back(self, languages: tuple[str, ...], tesseract: Any) -> None:
        tesseract.Clear()
        with self._lock:
            self._idle.append((languages, tesseract))
            surplus = self._idle[: len(self._idle) if self._closed else -self._workers]
            del self._idle[: len(surplus)]
        for _, one in surplus:
            one.End()

    def close(self) -> None:
        """Free the instances."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, one in idle:
            one.End()

    def forked(self) -> None:
        """In the child: the idle instances are whole, the lock may not be."""
        self._lock = threading.Lock()


def _library() -> Any:
    try:
        import tesserocr
    except ImportError as error:
        raise BackendFailed(
            f"the package tesserocr cannot be imported: {error}", hint="Install it again: pip install -U tesserocr"
        ) from error
    return tesserocr


def _layout(request: ReadRequest, settings: TesseractSettings) -> int:
    if unknown := sorted(set(request.options) - _OPTIONS):
        raise InvalidRequest(
            f"it has no option {unknown[0]!r}", hint=f"Its options are: {', '.join(sorted(_OPTIONS))}."
        )
    name = request.options.get("layout", settings.layout)
    if name not in LAYOUTS:
        raise InvalidRequest(f"there is no layout {name!r}", hint=f"There are: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


# -- one image ----------------------------------------------------------------------------------------------------------


def _decoded(part: ImagePart) -> tuple[Image, int]:
    """The image in gray, upright and on white where it is transparent, and its resolution in dots per inch."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(part.data)) as opened:
            told = opened.info.get("dpi", (0, 0))
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"the image cannot be decoded: {error}", hint="Save it again as PNG or JPEG.") from error
    if max(image.size) > _LARGEST:
        raise InvalidRequest(
            f"the image is {image.width:,} x {image.height:,} pixels large; Tesseract takes {_LARGEST:,} a side",
            hint="Cut it into pieces.",
        )
    try:
        resolution = round(float(told[0]))
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError):
        resolution = 0
    return image, resolution if 70 <= resolution <= 2400 else _RESOLUTION


def _recognise(tesseract: Any, image: Image, resolution: int, layout: int, call: Call) -> tuple[str, tuple[Word, ...]]:
    """The text and the words. Raises when the deadline passes; the caller has that error already."""
    pixels = image.tobytes()
    tesseract.SetPageSegMode(layout)
    tesseract.SetImageBytes(pixels, image.width, image.height, 1, image.width)
    tesseract.SetSourceResolution(resolution)
    call.check()
    allowed = min(call.remaining(), call.timeouts.whole)
    if not tesseract.Recognize(min(max(1, int(allowed * 1000)), 2**31 - 1)):
        call.check()
        raise BackendFailed("Tesseract gave up on the image", hint="Try another layout, or a larger or clearer image.")
    words = tuple(_words(tesseract))
    text: str = tesseract.GetUTF8Text().strip() if words else ""
    return text, words


def _words(tesseract: Any) -> list[Word]:
    library = _library()
    word, line, paragraph = library.RIL.WORD, library.RIL.TEXTLINE, library.RIL.PARA
    found: list[Word] = []
    lines = paragraphs = -1
    new_line = new_paragraph = True  # begun by a piece that holds no text
    iterator = tesseract.GetIterator()
    if iterator is None:
        return found
    for piece in library.iterate_level(iterator, word):
        new_line = new_line or piece.IsAtBeginningOf(line)
        new_paragraph = new_paragraph or piece.IsAtBeginningOf(paragraph)
        box = piece.BoundingBox(word)
        try:
            text = piece.GetUTF8Text(word).strip()
        except RuntimeError:  # there is nothing to say of it
            continue
        if not text or box is None:
            continue
        lines += new_line
        paragraphs += new_paragraph
        new_line = new_paragraph = False
        sure = min(max(piece.Confidence(word) / 100, 0.0), 1.0)
        found.append(Word(text=text, box=box, confidence=round(sure, 4), line=lines, paragraph=paragraphs))
    return found


def _ping() -> ImagePart:
    """An image with a word on it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (160, 80), 255)
    ImageDraw.Draw(image).text((32, 16), "ping", font=ImageFont.load_default(36), fill=0)
    out = io.BytesIO()
    image.save(out, "PNG")
    return ImagePart(out.getvalue())
