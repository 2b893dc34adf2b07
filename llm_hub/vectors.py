"""What vectors must be like: the check that every answer of an embedding backend has to pass."""

from __future__ import annotations

import math

from llm_hub.errors import ProtocolError, UnsupportedFeature
from llm_hub.messages import EmbedResponse

__all__ = ["check_vectors"]

_LOOK = "See the log of the backend: is this model for embeddings, and loaded as such?"


def check_vectors(
    response: EmbedResponse, count: int, *, first: int = 0, dimension: int | None = None, asked: int | None = None
) -> None:
    """Raise ProtocolError unless there are `count` vectors, all of one dimension, finite and not zero.

    `first` is the index of the first text, `dimension` that of the vectors before. `asked` is the dimension that the
    caller wants: a backend that does not give it raises UnsupportedFeature.
    """
    vectors = response.vectors
    if len(vectors) != count:
        raise ProtocolError(f"it gave {len(vectors)} vectors for {count} texts", hint=_LOOK)
    wanted = dimension if dimension is not None else response.dimension
    for index, vector in enumerate(vectors, first):
        if len(vector) != wanted or not wanted:
            raise ProtocolError(f"vector {index} has {len(vector)} numbers where others have {wanted}", hint=_LOOK)
        length = math.hypot(*vector)  # one pass finds all that can be wrong
        if not math.isfinite(length):
            raise ProtocolError(f"vector {index} holds numbers that are not finite", hint=_LOOK)
        if length == 0.0:
            raise ProtocolError(f"vector {index} is all zero", hint=_LOOK)
    if asked is not None and count and wanted != asked:
        raise UnsupportedFeature(
            f"it gave {wanted} dimensions where {asked} were asked for",
            features=("dimensions",),
            hint="Ask for fewer than the model has, or leave dimensions out.",
        )
