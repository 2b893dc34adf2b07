"""For each rule of reading a plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.engine import EngineBackend
from llm_hub.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from llm_hub.manifest import PluginManifest
from llm_hub.messages import (
    ReadRequest,
    ReadResponse,
    Word,
)
from llm_hub.testing.conformance import Outcome, Tier, run_suite, vision_read
from llm_hub.testing.conformance.mutants import Mutants, Parts, caught
from llm_hub.testing.pictures import NotAnImage, look
from llm_hub.testing.sights import BLANK, PAGE, PAGE_SIZE, PAGE_WORDS
from llm_hub.testing.vision import VisionRequirements


class Reads(VisionRequirements):
    """The right plugin that reads."""

    model = "reader"
    images = False
    read = True
    sends_key = False


class Reader:
    """An engine that knows the page of the rules, and reads nothing else."""

    features = frozenset({Feature.READ})

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name="reader", capabilities=frozenset({Capability.VISION}), features=self.features),)

    def load(self, model: str | None, call: Call) -> None:
        if model not in (None, "reader"):
            raise ModelNotFound(f"it has no model {model!r}", model=model, available=("reader",))

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        known = model in (None, "reader")
        return Probe(rung=rung if known else Rung.ALIVE, wanted=rung, detail="" if known else "it has no such model")

    def close(self) -> None:
        pass

    def words(self, data: bytes) -> tuple[Word, ...]:
        return tuple(
            Word(text=text, box=box, confidence=0.9, line=line, paragraph=line // 2) for text, box, line in PAGE_WORDS
        )

    def text(self, words: tuple[Word, ...]) -> str:
        lines = itertools.groupby(words, key=lambda word: word.line)
        return "\n".join(" ".join(word.text for word in line) for _, line in lines)

    def size(self, data: bytes) -> tuple[int, int]:
        return PAGE_SIZE if data == PAGE else (300, 200)

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        data = request.image.data
        if request.languages:
            raise UnsupportedFeature("it knows no languages", features=("languages",))
        if data not in (PAGE, BLANK):
            self.check(data)
        words = self.words(data) if data == PAGE else self.others(data)
        width, height = self.size(data)
        return ReadResponse(text=self.text(words), words=words, width=width, height=height, model="reader")

    def check(self, data: bytes) -> None:
        try:
            look(data)
        except NotAnImage as error:
            raise InvalidRequest(str(error)) from error

    def others(self, data: bytes) -> tuple[Word, ...]:
        """What it reads where nothing is written."""
        return ()


READS = PluginManifest(
    api_version="1.0",
    summary="reads, for tests",
    features=frozenset({Feature.READ}),
    default_models={Capability.VISION: "reader"},
)


def reading(part: type[Any]) -> object:
    """A plugin that reads, from an engine or a backend."""

    def build(config: Any, context: Any) -> EngineBackend:
        backend, engine = (part, Reader) if issubclass(part, EngineBackend) else (EngineBackend, part)
        return backend(engine(), name=config.name, workers=4)

    return Parts(Capability.VISION, READS, build)


MUTANTS = Mutants(Reads, reading)
breaks = MUTANTS.breaks


class Rewrites(Reader):
    """A reader that makes something else of each word."""

    def word(self, word: Word) -> Word:
        return word

    def words(self, data: bytes) -> tuple[Word, ...]:
        return tuple(self.word(word) for word in super().words(data))


def edit(word: Word, **fields: Any) -> Word:
    return msgspec.structs.replace(word, **fields)


@breaks("read")
class SkipsWords(Reader):
    def words(self, data: bytes) -> tuple[Word, ...]:
        return super().words(data)[::2]


@breaks("read")
class ReadsInCapitals(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, text=word.text.upper())


@breaks("read.boxes")
class PutsBoxesOutside(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, box=tuple(one + 400 for one in word.box))


@breaks("read.boxes")
class GivesWidthAndHeight(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, box=(*word.box[:2], word.box[2] - word.box[0], word.box[3] - word.box[1]))


@breaks("read.boxes")
class ForgetsToScaleBack(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, box=tuple(one // 2 for one in word.box))


@breaks("read.boxes")
class CountsFromBelow(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, box=(word.box[0], 250 - word.box[3], word.box[2], 250 - word.box[1]))


@breaks("read.boxes")
class GivesFractions(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, box=tuple(one + 0.5 for one in word.box))


@breaks("read.boxes", "read.empty")
class TellsAnotherSize(Reader):
    def size(self, data: bytes) -> tuple[int, int]:
        return (1000, 1000)


@breaks("read.confidence")
class GivesPercents(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, confidence=96.5)


@breaks("read.confidence")
class IsNeverSure(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, confidence=0.0)


@breaks("read.lines")
class CountsFromOne(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, line=word.line + 1)


@breaks("read.lines")
class JoinsLines(Reader):
    def text(self, words: tuple[Word, ...]) -> str:
        return " ".join(word.text for word in words)


@breaks("read.lines")
class CountsLinesAnewInEachParagraph(Rewrites):
    def word(self, word: Word) -> Word:
        return edit(word, line=word.line % 2)


@breaks("read.lines")
class HasOtherWordsInTheText(Reader):
    def text(self, words: tuple[Word, ...]) -> str:
        return super().text(words).replace("gulls", "girls")


@breaks("read.empty")
class ReadsDust(Reader):
    def others(self, data: bytes) -> tuple[Word, ...]:
        return (Word(text="'", box=(1, 1, 3, 3), confidence=0.4, line=0, paragraph=0),)


@breaks("read.empty")
class FailsOnAnEmptyPage(Reader):
    def others(self, data: bytes) -> tuple[Word, ...]:
        raise InvalidRequest("there is no text on it")


@breaks("read.broken")
class LetsItsDecoderRaise(Reader):
    def check(self, data: bytes) -> None:
        look(data)


@breaks("read.broken")
class ReadsNothingOnNothing(Reader):
    def check(self, data: bytes) -> None:
        pass


@breaks("read.sources")
class ReadsDifferentlyEachTime(Reader):
    calls = itertools.count()

    def words(self, data: bytes) -> tuple[Word, ...]:
        return super().words(data)[next(self.calls) % 3 :]


@breaks("read.languages")
class IgnoresLanguages(Reader):
    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        return super().read(msgspec.structs.replace(request, languages=()), call)


@breaks("read.at-once")
class KeepsTheImage(Reader):
    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        self.current = request
        threading.Event().wait(0.02)
        return super().read(self.current, call)


@breaks("read.shapes")
class SeesLettersInShapes(Reader):
    def others(self, data: bytes) -> tuple[Word, ...]:
        if data == BLANK:
            return ()
        return (Word(text="Ooh", box=(1, 1, 30, 30), confidence=0.99, line=0, paragraph=0),)


@breaks("deadlines.passed")
class Deaf(EngineBackend):
    """Takes every call for one that has just begun."""

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        return super().read(request, Call(timeout=30))


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: VisionRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_has_a_mutant() -> None:
    assert MUTANTS.without([vision_read.RULES]) == set()


def test_the_right_plugin_that_reads_keeps_every_rule() -> None:
    class Mine(Reads):
        plugin = reading(Reader)

    report = run_suite(Mine)
    assert report.ok, str(report)
    assert not report.of(Outcome.UNDECLARED, Outcome.MENDED)
    assert report.tier is Tier.CONFORMS
    passed = {one.rule for one in report.of(Outcome.PASSED)}
    assert {f"vision.{rule.id}" for rule in vision_read.RULES} <= passed


def test_reading_that_is_not_declared_is_told() -> None:
    class Modest(EngineBackend):
        @property
        def features(self) -> frozenset[Feature]:
            return frozenset({Feature.IMAGES})

    manifest = PluginManifest(api_version="1.0", summary="modest", features=frozenset({Feature.IMAGES}))
    silent = VisionRequirements()
    silent.model = "reader"
    silent.plugin = Parts(Capability.VISION, manifest, lambda config, context: Modest(Reader(), name=config.name))
    (finding,) = run_suite(silent, only=["vision.read"]).findings
    assert finding.outcome is Outcome.UNDECLARED
