"""Embedding spaces: the vectors of fixed canary texts on record, and whether a backend's answers still agree with them.

Equal dimension proves nothing, and short texts prove little: one model under two servers agreed to 0.999999 on a short
text and to 0.94 on a long one, because they cut it at different lengths. So the canaries are short and long, below and
beyond what models usually take, of several languages and scripts, and asked as queries and documents too.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llm_hub.errors import SettingsError
from llm_hub.messages import EmbedKind, EmbedResponse

if TYPE_CHECKING:
    from llm_hub.capabilities import ModelInfo
    from llm_hub.embedding import EmbeddingHandle

__all__ = [
    "CANARY_VERSION",
    "SAME",
    "Canary",
    "SpaceNotes",
    "SpaceRecord",
    "Verdict",
    "afingerprint",
    "canaries",
    "compare",
    "fingerprint",
    "record_of",
]

SAME = 0.99
"""The least cosine of each canary with the one on record for a backend to belong to the space."""

_NORM = 0.01  # how much the lengths of vectors may differ, as a fraction: half precision makes 0.001

CANARY_VERSION = 1
"""Of the texts below. They are never changed: another text is another version, and its records are not comparable."""


class Canary(msgspec.Struct, frozen=True):
    """A fixed text, and what it is embedded as."""

    name: str
    text: str
    kind: EmbedKind | None = None


_SENTENCE = (
    "On 14 March 2019 the ferry MS Solveig carried 312 passengers, 48 cars and one very patient dog across the fjord "
    "to Bergen; it arrived 25 minutes late."
)
_GERMAN = (
    "Guten Tag! Die Brücke über den Fluss wird ab Montag für drei Wochen gesperrt, weil die Geländer erneuert werden. "
    "Fußgänger können die Fähre benutzen."
)
_SCRIPTS = (
    "春になると川沿いの桜が咲く。 会议改到星期四下午三点。 Завтра обещают дождь и сильный ветер. "
    "القطار يغادر عند الفجر. पुस्तकालय रविवार को बंद रहता है। Η θάλασσα ήταν ήρεμη όλη τη νύχτα."
)

# Each topic has its own nouns, so that it shows how much of a long text a model has read.
_TOPICS = (
    ("harbours", "pier crane anchor pilot buoy tide cargo rope lighthouse gull"),
    ("bread", "flour oven yeast crust loaf baker kneading salt rye dough"),
    ("glaciers", "ice moraine crevasse meltwater ridge snow valley boulder cirque frost"),
    ("watches", "spring gear dial escapement jewel crown balance case pendulum ratchet"),
    ("bees", "hive queen nectar comb drone pollen swarm wax keeper clover"),
    ("railways", "track signal locomotive sleeper tunnel timetable guard carriage junction platform"),
    ("law", "court clause witness verdict statute appeal contract judge plaintiff oath"),
    ("volcanoes", "lava crater ash magma fissure eruption basalt caldera pumice vent"),
    ("music", "violin chord tempo choir score rehearsal cello melody conductor bow"),
    ("medicine", "nurse fever dose ward vaccine symptom surgeon pulse bandage clinic"),
    ("astronomy", "telescope orbit comet nebula eclipse star galaxy lens spectrum moon"),
    ("farming", "plough barley barn tractor furrow harvest silo hedge cattle seed"),
    ("computing", "compiler kernel cache thread pointer register protocol packet index stack"),
    ("painting", "canvas brush pigment easel varnish portrait shade gallery sketch frame"),
    ("chess", "bishop gambit castle pawn endgame clock rook opening check board"),
    ("deserts", "dune caravan oasis camel mirage sand well nomad thirst scorpion"),
    ("printing", "press ink type sheet margin binding proof font roller plate"),
    ("forests", "oak moss trunk owl fern canopy root squirrel path mushroom"),
    ("banking", "loan interest deposit ledger branch credit bond account teller audit"),
    ("cooking", "pan onion simmer broth ladle spice recipe garlic kettle stew"),
    ("flying", "wing rudder runway cockpit turbulence hangar altitude propeller glider flap"),
    ("pottery", "clay kiln glaze wheel vase slip handle shard studio firing"),
    ("rivers", "bank current ford delta weir ferry reed flood trout mill"),
    ("schools", "pupil chalk lesson desk exam teacher essay bell library break"),
)
_SENTENCES = (
    "The {0} stood close to the {1}, and nobody had moved the {2} since the day before.",
    "Whoever looked after the {1} also had to mind the {3}.",
    "A new {4} costs less than an old {5}, but the {0} lasts longer.",
    "First came the {6}, then the {7}, and at last the {2} that everyone had waited for.",
    "Without a {8} there is no use in a {9}.",
    "They wrote down the {3}, counted each {5} twice, and left the {7} where it was.",
    "In the evening the {9} was brought back next to the {4}.",
    "Some say that the {6} matters more than the {8}; others would rather keep the {1}.",
)


def _chapter(number: int) -> str:
    topic, nouns = _TOPICS[number % len(_TOPICS)]
    words = nouns.split()
    turn = number // len(_TOPICS)
    turned = words[turn:] + words[:turn]
    return f"Chapter {number + 1}, about {topic}. " + " ".join(sentence.format(*turned) for sentence in _SENTENCES)


@functools.cache
def canaries() -> tuple[Canary, ...]:
    """The texts: the page has about 190 tokens, the book about 9,000, which is beyond what most models take."""
    page = _chapter(0) + " " + " ".join(_chapter(4).split(". ")[1:3]) + "."
    book = "\n\n".join(_chapter(number) for number in range(72))
    return (
        Canary("greeting", "hello world"),
        Canary("sentence", _SENTENCE),
        Canary("german", _GERMAN),
        Canary("scripts", _SCRIPTS),
        Canary("page", page),
        Canary("book", book),
        Canary("query", _SENTENCE, "query"),
        Canary("document", _SENTENCE, "document"),
    )


class SpaceNotes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of where a space comes from. It is for people: what counts are the vectors.

    `max_input` in tokens. `digest` is that of the model's weights, where the backend tells.
    """

    backend: str | None = None
    model: str | None = None
    pooling: str | None = None
    max_input: int | None = None
    digest: str | None = None


class SpaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An embedding space on record.

    `vectors` are the original answers to the canary texts of version `canaries`, by the text's name, each of length
    `dimension`; `norm` is their mean Euclidean length. `id` is made from the vectors, so it belongs to this record alone.
    """

    id: str
    canaries: int
    dimension: int
    norm: float
    vectors: Mapping[str, tuple[float, ...]]
    notes: SpaceNotes = SpaceNotes()

    def to_json(self) -> bytes:
        """The record as JSON; `from_json` gives the same record, to the last bit."""
        return msgspec.json.encode(self, order="deterministic")

    @classmethod
    def from_json(cls, data: bytes, *, where: str = "the record") -> SpaceRecord:
        """Raises SettingsError, which names `where`, for what is no record, or one that was changed."""
        try:
            record = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"it is no record of an embedding space ({error})", where=where) from error
        if record.id != _identity(record.vectors):
            raise SettingsError(
                "its id does not belong to its vectors: it was changed, or is damaged",
                where=where,
                hint="Restore it, or make a new record; a new one is another space.",
            )
        return record

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all. Raises OSError."""
        target = Path(path)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpaceRecord:
        """Read it from a file. Raises SettingsError, which names the file."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SettingsError(f"it cannot be read: {error.strerror or error}", where=os.fspath(path)) from error
        return cls.from_json(data, where=os.fspath(path))


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether vectors belong to a space. `reasons` say why not; `cosines` are by the name of the canary."""

    same: bool
    cosines: Mapping[str, float]
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        lowest = f"lowest cosine {min(self.cosines.values()):.4f}" if self.cosines else "no cosines"
        return f"the same space ({lowest})" if self.same else f"another space: {'; '.join(self.reasons)}"


def compare(record: SpaceRecord, vectors: Mapping[str, Sequence[float]], *, version: int = CANARY_VERSION) -> Verdict:
    """Do these answers to the canary texts, by name, belong to the space on record? Pure.

    They do if every text of the record is answered, in the same dimension, with a cosine of at least `SAME` and the
    same length to within 1 %. `version` is that of the texts.
    """
    if record.canaries != version:
        reason = (
            f"the record was made with version {record.canaries} of the canary texts, these answer version {version}"
        )
        return Verdict(same=False, cosines={}, reasons=(reason,))
    missing = sorted(record.vectors.keys() - vectors.keys())
    if missing:
        return Verdict(same=False, cosines={}, reasons=(f"there is no answer to {', '.join(missing)}",))
    dimensions = sorted({len(vectors[name]) for name in record.vectors})
    if dimensions != [record.dimension]:
        found = ", ".join(map(str, dimensions))
        return Verdict(same=False, cosines={}, reasons=(f"{found} dimensions instead of {record.dimension}",))
    cosines: dict[str, float] = {}
    stretched: list[float] = []
    for name, original in record.vectors.items():
        ours, theirs = math.hypot(*original), math.hypot(*vectors[name])
        if not (math.isfinite(theirs) and theirs):
            return Verdict(same=False, cosines={}, reasons=(f"the vector of {name} has the length {theirs}",))
        cosines[name] = math.fsum(map(float.__mul__, original, map(float, vectors[name]))) / (ours * theirs)
        if abs(theirs / ours - 1) > _NORM:
            stretched.append(theirs / ours)
    reasons = _differences(cosines)
    if stretched:
        reasons.append(
            f"its vectors are {min(stretched):.3g} to {max(stretched):.3g} times as long: they are not normalised alike"
        )
    return Verdict(same=not reasons, cosines=cosines, reasons=tuple(reasons))


_ROLES = {"query", "document"}


def _differences(cosines: Mapping[str, float]) -> list[str]:
    """What the canaries that differ have in common."""
    low = {name: value for name, value in cosines.items() if value < SAME}
    if not low:
        return []
    shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(low.items(), key=lambda item: item[1]))
    if low.keys() == {"book"}:
        why = "texts beyond its limit are cut at another length; shorter ones agree"
    elif low.keys() <= _ROLES:
        why = "queries or documents get another prefix"
    else:
        why = "another model, pooling, precision or template"
    return [f"{why} (cosine {shown})"]


# -- making a record --------------------------------------------------------------------------------------------------


def record_of(
    vectors: Mapping[str, Sequence[float]], *, notes: SpaceNotes | None = None, version: int = CANARY_VERSION
) -> SpaceRecord:
    """A record of these answers, by the name of the canary. Raises ValueError if they have not one dimension."""
    kept = {name: tuple(map(float, vector)) for name, vector in vectors.items()}
    dimensions = {len(vector) for vector in kept.values()}
    if len(dimensions) != 1:
        raise ValueError(f"the vectors of a space have one dimension, these have {sorted(dimensions)}")
    return SpaceRecord(
        id=_identity(kept),
        canaries=version,
        dimension=dimensions.pop(),
        norm=math.fsum(math.hypot(*vector) for vector in kept.values()) / len(kept),
        vectors=kept,
        notes=notes or SpaceNotes(),
    )


def _identity(vectors: Mapping[str, Sequence[float]]) -> str:
    digest = hashlib.sha256()
    for name, vector in sorted(vectors.items()):
        digest.update(name.encode() + b"\0" + struct.pack(f"<{len(vector)}d", *vector))
    return f"space-{digest.hexdigest()[:16]}"


def fingerprint(handle: EmbeddingHandle, *, pooling: str | None = None, timeout: float = 120.0) -> SpaceRecord:
    """Have the canaries embedded, and make a record of it. `timeout` in seconds, for each request.

    `pooling` is a note. Raises what `handle.embed` raises.
    """
    answers = {
        kind: handle.embed([one.text for one in asked], kind=kind, truncate=True, timeout=timeout)
        for kind, asked in by_kind().items()
    }
    return _record(answers, handle.model_info(timeout=timeout), pooling)


async def afingerprint(handle: EmbeddingHandle, *, pooling: str | None = None, timeout: float = 120.0) -> SpaceRecord:
    """`fingerprint`, async."""
    answers = {
        kind: await handle.aembed([one.text for one in asked], kind=kind, truncate=True, timeout=timeout)
        for kind, asked in by_kind().items()
    }
    return _record(answers, await handle.amodel_info(timeout=timeout), pooling)


def by_kind() -> dict[EmbedKind | None, list[Canary]]:
    """The canaries as they are asked for: one request for each kind."""
    kinds: dict[EmbedKind | None, list[Canary]] = {}
    for one in canaries():
        kinds.setdefault(one.kind, []).append(one)
    return kinds


def by_name(answers: Mapping[EmbedKind | None, EmbedResponse]) -> dict[str, tuple[float, ...]]:
    """The answers to `by_kind`, by the name of the canary."""
    return {
        one.name: vector for kind, asked in by_kind().items() for one, vector in zip(asked, answers[kind], strict=True)
    }


def _record(
    answers: Mapping[EmbedKind | None, EmbedResponse], info: ModelInfo | None, pooling: str | None
) -> SpaceRecord:
    served = answers[None].served_by
    notes = SpaceNotes(
        backend=served.backend if served is not None else None,
        model=answers[None].model or (served.model if served is not None else None),
        pooling=pooling,
        max_input=info.max_input or info.context_length if info is not None else None,
        digest=info.digest if info is not None else None,
    )
    return record_of(by_name(answers), notes=notes)
