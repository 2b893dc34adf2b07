"""The few of vLLM's Prometheus metrics that say how busy it is."""

from __future__ import annotations

import math
import re

import msgspec

__all__ = ["Load", "parse_load", "parse_share"]

# Prometheus text format: name, labels, value. `gpu_cache_usage_perc` is the older name of `kv_cache_usage_perc`.
_SAMPLE = re.compile(
    r"^vllm:(?P<name>num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc)"
    r"(?:\{(?P<labels>.*)\})? (?P<value>\S+)",
    re.MULTILINE,
)


_SHARE = re.compile(r"""^vllm:cache_config_info\{[^}]*\bgpu_memory_utilization="([0-9.eE+-]+)\"""", re.MULTILINE)


class Load(msgspec.Struct, frozen=True):
    """Requests that run and that wait, over all engines, and how full the fullest KV cache is, in [0, 1]."""

    running: int
    waiting: int
    kv_cache: float | None = None

    def __str__(self) -> str:
        cache = "" if self.kv_cache is None else f", KV cache {self.kv_cache:.0%} full"
        return f"{self.running} running, {self.waiting} waiting{cache}"


def parse_load(text: str, *, model: str | None = None) -> Load | None:
    """The load in a reply to /metrics, of one model or of all; None where it does not say."""
    counts = {"num_requests_running": 0.0, "num_requests_waiting": 0.0}
    seen = False
    cache: float | None = None
    for match in _SAMPLE.finditer(text):
        if model is not None and f'model_name="{model}"' not in (match["labels"] or ""):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        if match["name"] in counts:
            counts[match["name"]] += value
            seen = True
        else:
            cache = max(cache or 0.0, value)
    if not seen:
        return None
    return Load(int(counts["num_requests_running"]), int(counts["num_requests_waiting"]), cache)


def parse_share(text: str) -> float | None:
    """The share of each GPU's memory that the server was started with (`--gpu-memory-utilization`); None where it does not say."""
    match = _SHARE.search(text)
    try:
        return float(match[1]) if match is not None else None
    except ValueError:
        return None
