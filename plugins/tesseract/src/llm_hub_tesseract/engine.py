"""Tesseract as an engine: a bounded number of its instances, each used by one call at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.errors import BackendFailed, HubError, InvalidRequest, ModelNotFound
from llm_hub.messages import ReadRequest, ReadResponse, Timings, Word
from llm_hub_tesseract.languages import canonical, find
from llm_hub_tesseract.pictures import decoded, enlarged, evened, ping
from llm_hub_tesseract.plugin import MODEL
from llm_hub_tesseract.settings import LAYOUTS, TesseractSettings

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TesseractEngine"]

_FEATURES = frozenset({Feature.READ})
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
        image, resolution = decoded(request.image)
        began = time.monotonic()
        tesseract = self._take(languages)
        loaded = time.monotonic()
        try:
            look = _recognise(tesseract, image, resolution, layout, call)
        except BaseException:
            tesseract.End()
            raise
        self._give_back(languages, tesseract)
        return ReadResponse(
            text=look.text,
            words=look.words,
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
                answer = self.read(ReadRequest(image=ping(), options={"layout": "line"}), call)
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


class _Look(NamedTuple):
    """What was read in one go, and how much of it surely."""

    text: str
    words: tuple[Word, ...]

    @property
    def score(self) -> float:
        return sum(len(word.text) * word.confidence**2 for word in self.words if word.confidence > 0.5)


def _recognise(tesseract: Any, image: Image, resolution: int, layout: int, call: Call) -> _Look:
    """The text and the words; of small letters, or on paper that is lit unevenly, the better of two looks.

    Raises when the deadline passes; the caller has that error already.
    """
    tesseract.SetPageSegMode(layout)
    began = time.monotonic()
    first = _look(tesseract, image, resolution, 1, call)
    took = time.monotonic() - began
    second = evened(image)
    heights = [word.box[3] - word.box[1] for word in first.words]
    larger = enlarged(second or image, heights)
    if second is None and larger is None:
        return first
    if call.remaining() < 5 * took or call.timeouts.whole < 6 * took:
        return first  # there is not enough time to look again
    if larger is not None:
        other = _look(tesseract, larger, 2 * resolution, 2, call)
    else:
        other = _look(tesseract, second or image, resolution, 1, call)
    return other if other.score > first.score else first


def _look(tesseract: Any, image: Image, resolution: int, scale: int, call: Call) -> _Look:
    pixels = image.tobytes()
    tesseract.SetImageBytes(pixels, image.width, image.height, 1, image.width)
    tesseract.SetSourceResolution(resolution)
    call.check()
    allowed = min(call.remaining(), call.timeouts.whole)
    if not tesseract.Recognize(min(max(1, int(allowed * 1000)), 2**31 - 1)):
        call.check()
        raise BackendFailed("Tesseract gave up on the image", hint="Try another layout, or a larger or clearer image.")
    call.check()
    words = tuple(_words(tesseract, scale))
    return _Look(tesseract.GetUTF8Text().strip() if words else "", words)


def _words(tesseract: Any, scale: int) -> Iterator[Word]:
    library = _library()
    word, line, paragraph = library.RIL.WORD, library.RIL.TEXTLINE, library.RIL.PARA
    lines = paragraphs = -1
    new_line = new_paragraph = True  # begun by a piece that holds no text
    iterator = tesseract.GetIterator()
    if iterator is None:
        return
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
        left, top, right, bottom = box
        yield Word(
            text=text,
            box=(left // scale, top // scale, -(-right // scale), -(-bottom // scale)),
            confidence=round(min(max(piece.Confidence(word) / 100, 0.0), 1.0), 4),
            line=lines,
            paragraph=paragraphs,
        )
