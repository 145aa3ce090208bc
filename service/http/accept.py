"""Content negotiation: which of the offered media types a client's Accept header prefers."""

from functools import lru_cache


@lru_cache(maxsize=256)  # clients send few different ones, again and again
def choose(accept: str, offered: tuple[str, ...]) -> str | None:
    """Return the best of `offered`, or None when the client accepts none of them.

    Follows RFC 9110, section 12.5.1: the most specific range that matches a type gives its
    weight, q=0 excludes it. Equal weights fall to the earlier in `offered`; no header accepts
    everything; a range that cannot be read is ignored.
    """
    ranges = [parsed for part in accept.split(",") if (parsed := _parse(part))]
    if not ranges:
        return offered[0]
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    return best if weights[best] > 0 else None


def _parse(part: str) -> tuple[str, float] | None:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return None
    return (media_range, weight) if "/" in media_range and 0 <= weight <= 1 else None


def _weight(media_type: str, ranges: list[tuple[str, float]]) -> float:
    weights = dict(ranges)
    for media_range in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        if media_range in weights:
            return weights[media_range]
    return 0.0
