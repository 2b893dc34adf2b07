"""How long it takes to list the plugins among many installed distributions, beyond importing importlib.metadata.

    uv run python benchmarks/plugin_listing.py

Each round is a fresh interpreter, the hub's listing and the plain ways in turn, so that a slow moment of the machine hits
all of them. Wall clock in milliseconds: the median, and the least, which is what a busy machine does not disturb.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_hub.testing.distributions import install_distribution

ROUNDS = 11
BEGIN = "import sys, time, importlib.metadata as metadata\npath = [sys.argv[1]]\n"
END = "\nprint((time.perf_counter() - began) * 1000)"
WAYS = {
    "hub": BEGIN
    + "from llm_hub.discovery import installed\nbegan = time.perf_counter()\n"
    + "found = installed(path)"
    + END
    + "\nassert len(found) == int(sys.argv[2])",
    "entry points": BEGIN
    + "began = time.perf_counter()\nfor one in metadata.distributions(path=path): list(one.entry_points)"
    + END,
    "name and version too": BEGIN
    + "began = time.perf_counter()\nfor one in metadata.distributions(path=path): list(one.entry_points), one.name, one.version"
    + END,
}
CASES = ((100, 100, 10), (1000, 1000, 60), (300, 3, None))


def main() -> None:
    for count, plugins, budget in CASES:
        wanted = f", budget {budget} ms" if budget is not None else ""
        print(f"{count} distributions, {plugins} of them with a plugin{wanted}")
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                group = "llm_hub.text" if number < plugins else "console_scripts"
                install_distribution(
                    Path(folder) / "site", f"hub-{number}", entry_points={group: {f"p{number}": f"p{number}.plugin"}}
                )
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(ROUNDS):
                for way, code in WAYS.items():
                    command = [sys.executable, "-c", code, f"{folder}/site", str(plugins)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    times[way].append(float(done.stdout))
            least = {way: min(found) for way, found in times.items()}
            for way, found in times.items():
                print(
                    f"  {way:<22} median {statistics.median(found):>6.1f}  least {least[way]:>6.1f}"
                    f"  {least[way] / least['hub']:>4.1f} x the hub"
                )


if __name__ == "__main__":
    main()
