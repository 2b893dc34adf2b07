"""How long it takes to list the plugins among many installed distributions, beyond importing importlib.metadata.

uv run python benchmarks/plugin_listing.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_hub.testing.distributions import install_distribution

ROUNDS = 9
CODE = """
import sys, time, importlib.metadata
sys.path.insert(0, sys.argv[1])
began = time.perf_counter()
from llm_hub.discovery import installed
imported = time.perf_counter()
found = installed([sys.argv[1]])
print((imported - began) * 1000, (time.perf_counter() - imported) * 1000, len(found))
"""
PLAIN = """
import sys, time, importlib.metadata
began = time.perf_counter()
for one in importlib.metadata.distributions(path=[sys.argv[1]]):
    one.entry_points, one.metadata["Name"], one.version
print((time.perf_counter() - began) * 1000)
"""


def main() -> None:
    print(f"{'plugins':>8} {'listing ms':>11} {'budget':>7} {'as importlib.metadata does it, ms':>34}")
    for count, budget in ((100, 10), (1000, 60)):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                install_distribution(
                    Path(folder),
                    f"hub-plug-{number}",
                    entry_points={"llm_hub.text": {f"p{number}": f"p{number}.plugin"}},
                )
            ours, plain = [], []
            for _ in range(ROUNDS):
                done = subprocess.run([sys.executable, "-c", CODE, folder], capture_output=True, text=True, check=True)
                _, listing, found = done.stdout.split()
                assert int(found) == count
                ours.append(float(listing))
                done = subprocess.run([sys.executable, "-c", PLAIN, folder], capture_output=True, text=True, check=True)
                plain.append(float(done.stdout))
            print(f"{count:>8} {statistics.median(ours):>11.1f} {budget:>7} {statistics.median(plain):>34.1f}")


if __name__ == "__main__":
    main()
