"""A second process of a service, for the question whether it follows: it serves one request for each line that it reads."""

from __future__ import annotations

import json
import sys
import time

from llm_hub.hub import Hub

__all__ = ["main"]

_LONGEST = 10.0  # seconds that it waits for an epoch


def main() -> None:
    """Each line of the input is the epoch to wait for; the answer says when it was there, and who served a call then."""
    timeout = float(sys.argv[1])
    with Hub.from_env(config=sys.argv[2] if sys.argv[2:] else None) as hub:
        text = hub.text()
        for line in sys.stdin:
            until = time.monotonic() + _LONGEST
            while hub.epoch < int(line) and time.monotonic() < until:
                time.sleep(0.001)
            at = time.monotonic()  # the same clock in all processes of a machine
            served = text.chat("ping", max_tokens=8, timeout=timeout).served_by
            assert served is not None
            print(json.dumps({"at": at, "backend": served.backend, "epoch": served.epoch}), flush=True)


if __name__ == "__main__":
    main()
