"""Keeps the fallbacks of an embedding route within one space: a fallback serves only if its canaries agree.

The canaries of a route's first backend are put on record when it has answered for the first time, if the route has
fallbacks at all. They are what a fallback is compared with, when it comes to that.
"""

from __future__ import annotations

import logging
import time

from llm_hub.asking import guarded
from llm_hub.call import Call
from llm_hub.embedding_space import SpaceRecord, Verdict, by_kind, by_name, compare, record_of
from llm_hub.embedding_vectors import embed_all
from llm_hub.errors import EmbeddingSpaceChanged, HubError
from llm_hub.messages import EmbedKind, EmbedRequest, EmbedResponse
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask
from llm_hub.worlds import World

__all__ = ["Spaces", "admit", "answers", "check_again", "remember"]

logger = logging.getLogger("llm_hub")

_VALID = 600.0  # seconds for which a comparison holds: the model behind a name may be replaced
_LONGEST = 60.0  # seconds that making a record may add to a call

Key = tuple[str, str | None]


class Spaces:
    """What one epoch knows of the spaces of its backends."""

    __slots__ = ("doubted", "making", "records", "verdicts")

    def __init__(self) -> None:
        self.records: dict[Key, SpaceRecord] = {}
        self.verdicts: dict[tuple[str, Key], tuple[float, Verdict]] = {}
        self.making: set[Key] = set()
        self.doubted: set[Key] = set()

    def doubt(self, key: Key) -> None:
        """The model behind this name has changed: what was found of its space holds no longer."""
        self.doubted.add(key)
        for known in [one for one in self.verdicts if one[1] == key]:
            self.verdicts.pop(known, None)

    def carry(self, before: Spaces, names: set[str]) -> None:
        """Take over what the epoch before knew of these backends, which did not change."""
        self.records.update({key: record for key, record in list(before.records.items()) if key[0] in names})
        self.verdicts.update({key: known for key, known in list(before.verdicts.items()) if key[1][0] in names})
        self.doubted.update(key for key in list(before.doubted) if key[0] in names)


async def remember(world: World, runtime: Runtime, ask: Ask, call: Call) -> None:
    """Put the space of the route's first backend on record, once, if a fallback could ever be compared with it."""
    route = runtime.cached(ask)
    if route is None or len(route.destinations) < 2:
        return
    first = route.destinations[0]
    key = (first.name, first.model)
    spaces: Spaces = runtime.spaces
    if key in spaces.records or key in spaces.making:
        return
    spaces.making.add(key)
    try:
        spaces.records[key] = record_of(await answers(world, runtime, first, call))
    except HubError as error:
        call.check()
        # What was asked for is there. Without a record no fallback serves, which `admit` will say.
        logger.warning("the embedding space of %s could not be put on record: %s", first.name, error)
    finally:
        spaces.making.discard(key)


async def check_again(world: World, runtime: Runtime, destination: Destination, call: Call) -> None:
    """The model of this destination has changed: raise EmbeddingSpaceChanged unless it embeds as the one on record did."""
    key = (destination.name, destination.model)
    spaces: Spaces = runtime.spaces
    record = spaces.records.get(key)
    if record is None:
        logger.warning(
            "%s: nothing shows whether the new model %s embeds into the space of the one before",
            destination.name,
            destination.model,
        )
    else:
        verdict = compare(record, await answers(world, runtime, destination, call))
        if not verdict.same:
            raise EmbeddingSpaceChanged(
                f"the model behind {destination.model!r} has changed and embeds into another space than before: "
                + "; ".join(verdict.reasons),
                cosines=verdict.cosines,
                backend=destination.name,
                hint="Put the model from before back, or embed everything again and open the hub anew.",
            )
    spaces.doubted.discard(key)


async def admit(world: World, runtime: Runtime, ask: Ask, fallback: Destination, call: Call) -> None:
    """Raise EmbeddingSpaceChanged unless this fallback embeds into the space of the route's first backend."""
    route = runtime.cached(ask)
    first = route.destinations[0] if route is not None else fallback
    spaces: Spaces = runtime.spaces
    record = spaces.records.get((first.name, first.model))
    if record is None:
        raise EmbeddingSpaceChanged(
            f"nothing shows that it embeds into the space of {first.name!r}, which has not answered since this hub was "
            "opened",
            backend=fallback.name,
            hint=_HINT,
        )
    key = (record.id, (fallback.name, fallback.model))
    since, verdict = spaces.verdicts.get(key, (0.0, None))
    if verdict is None or time.monotonic() - since > _VALID:
        verdict = compare(record, await answers(world, runtime, fallback, call))
        spaces.verdicts[key] = (time.monotonic(), verdict)
    if not verdict.same:
        raise EmbeddingSpaceChanged(
            f"it embeds into another space than {first.name!r}: {'; '.join(verdict.reasons)}",
            cosines=verdict.cosines,
            backend=fallback.name,
            hint=_HINT,
        )


_HINT = "Vectors of two spaces cannot be compared: wait for the first backend, or serve the same model on both alike."


async def answers(world: World, runtime: Runtime, destination: Destination, call: Call) -> dict[str, tuple[float, ...]]:
    """What a backend answers to the canary texts, by their name."""
    given: dict[EmbedKind | None, EmbedResponse] = {}
    for kind, asked in by_kind().items():
        request = EmbedRequest(
            texts=tuple(one.text for one in asked), model=destination.model, kind=kind, truncate=True
        )
        own = Call(
            timeout=max(0.001, min(call.remaining(), _LONGEST)), timeouts=destination.timeouts, cancel=call.cancel
        )
        given[kind] = await guarded(embed_all(world, runtime, destination, request, own), destination)
    return by_name(given)
