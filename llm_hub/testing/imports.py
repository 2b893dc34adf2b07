"""What importing a plugin costs and does: which modules it loads and who asked for each, and what it touches meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

__all__ = ["HEAVY", "ImportBudget", "ImportReport", "Imported", "Touched", "import_report"]

HEAVY = frozenset(
    {
        "PIL",
        "aiohttp",
        "anthropic",
        "asyncio",
        "boto3",
        "botocore",
        "cohere",
        "concurrent.futures",
        "cv2",
        "datasets",
        "fastapi",
        "fastembed",
        "google",
        "grpc",
        "gguf",
        "groq",
        "http.client",
        "httpcore",
        "httpx",
        "huggingface_hub",
        "jax",
        "langchain",
        "langchain_community",
        "langchain_core",
        "litellm",
        "llama_cpp",
        "llama_index",
        "matplotlib",
        "mistralai",
        "mlx",
        "numpy",
        "ollama",
        "onnxruntime",
        "openai",
        "opentelemetry",
        "pandas",
        "paddle",
        "prometheus_client",
        "pydantic",
        "pynvml",
        "ray",
        "requests",
        "safetensors",
        "scipy",
        "sentence_transformers",
        "sklearn",
        "stevedore",
        "tensorflow",
        "tesserocr",
        "tiktoken",
        "tokenizers",
        "torch",
        "transformers",
        "urllib3",
        "vllm",
        "wordllama",
        "xllamacpp",
        "yaml",
    }
)
"""Modules that no plugin may load when it is imported: engines, clients, frameworks, and what is slow of the standard
library. They belong into the function that needs them, which runs when a backend is built or called."""


class ImportBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What the import of a plugin may cost.

    `forbidden` are modules (with all below them) that must not be loaded, `allowed` those of them that may after all.
    `seconds` of processor time and `modules` are limits beyond what the hub's own contract (`llm_hub.hookspecs`) costs.
    """

    forbidden: frozenset[str] = HEAVY
    allowed: frozenset[str] = frozenset()
    seconds: float = 1.0
    modules: int = 300


class Imported(msgspec.Struct, frozen=True):
    """A module that was loaded: `chain` is how it came to it, from the plugin's own module down to it."""

    name: str
    chain: tuple[str, ...]

    def __str__(self) -> str:
        return " -> ".join(self.chain)


class Touched(msgspec.Struct, frozen=True):
    """Something outside of the process that was touched: `during` is "import" or "manifest", `where` is a line of code."""

    what: str
    during: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} (at {self.where})"


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in a fresh interpreter when a plugin was imported and asked for its manifest.

    `seconds` is processor time of the import. `output` is what it printed. `failure` is the traceback if it raised, and
    then nothing else may be known. `threads` are the names of those that it started.
    """

    reference: str
    modules: tuple[Imported, ...] = ()
    touched: tuple[Touched, ...] = ()
    threads: tuple[str, ...] = ()
    seconds: float = 0.0
    output: str = ""
    failure: str | None = None

    def heavy(self, budget: ImportBudget) -> tuple[Imported, ...]:
        """The modules that are too heavy, without those that came with them; the first of each package."""
        found: dict[str, Imported] = {}
        for module in self.modules:
            culprits = [_matching(name, budget.forbidden) for name in module.chain]
            if culprits[-1] is None or any(_matching(name, budget.allowed) for name in module.chain):
                continue
            if not any(culprits[:-1]):  # what a heavy one loads comes with it
                found.setdefault(culprits[-1], module)
        return tuple(found.values())

    def complaints(self, budget: ImportBudget | None = None) -> tuple[str, ...]:
        """What is wrong with the import, one sentence each, with the module at fault and who imported it."""
        budget = budget or ImportBudget()
        if self.failure is not None:
            return (f"importing {self.reference} or asking it for its manifest failed:\n{self.failure}",)
        said = [f"importing it loads {module.name}: {module}" for module in self.heavy(budget)]
        if self.seconds > budget.seconds:
            said.append(
                f"importing it takes {self.seconds:.2f} s of processor time, where {budget.seconds} s are allowed"
            )
        if len(self.modules) > budget.modules:
            said.append(f"importing it loads {len(self.modules)} modules, where {budget.modules} are allowed")
        said += [f"importing it touches {one}" for one in self.touched if one.during == "import"]
        said += [f"importing it starts the thread {name!r}" for name in self.threads]
        if self.output:
            said.append(f"importing it prints: {self.output[:200]!r}")
        return tuple(said)

    @property
    def manifest_complaints(self) -> tuple[str, ...]:
        """What the hook `llm_hub_manifest` touches, one sentence each."""
        return tuple(f"its llm_hub_manifest touches {one}" for one in self.touched if one.during == "manifest")


def _matching(module: str, names: frozenset[str]) -> str | None:
    """The one of these names that the module is, or is below."""
    parts = module.split(".")
    return next((name for at in range(1, len(parts) + 1) if (name := ".".join(parts[:at])) in names), None)


def import_report(
    reference: str,
    *,
    path: Sequence[str] | None = None,
    python: Path | str = sys.executable,
    environ: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> ImportReport:
    """Import a plugin in a fresh interpreter, ask it for its manifest, and tell what that did.

    reference: as in the entry point, `package.module` or `package.module:object`.
    path: `sys.path` of that interpreter, by default this one's. environ: its environment, by default this one's.

    What the core's contract loads anyway is not counted. A plugin that ends the process or hangs is a `failure`.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        ask = {"reference": reference, "path": list(sys.path if path is None else path), "answer": str(answer)}
        try:
            done = subprocess.run(
                [str(python), "-c", _CHILD, json.dumps(ask)],
                env=os.environ if environ is None else environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ImportReport(reference=reference, failure=f"it did not end within {timeout:g} s")
        output = done.stdout + done.stderr
        if not answer.exists():
            return ImportReport(
                reference=reference, failure=f"it ended the process with exit code {done.returncode}\n{output[-2000:]}"
            )
        told = msgspec.json.decode(answer.read_bytes(), type=_Told)
    importer = dict(told.imports)
    module = reference.partition(":")[0]
    return ImportReport(
        reference=reference,
        modules=tuple(Imported(name, _chain(name, importer, module)) for name, _ in told.imports),
        touched=tuple(dict.fromkeys(told.touched)),
        threads=told.threads,
        seconds=told.seconds,
        output=output.strip() if told.failure is None else "",
        failure=told.failure,
    )


class _Told(msgspec.Struct, frozen=True):
    """The answer of the other process: the modules that were loaded, in their order, with who imported each."""

    imports: tuple[tuple[str, str], ...] = ()
    touched: tuple[Touched, ...] = ()
    threads: tuple[str, ...] = ()
    seconds: float = 0.0
    failure: str | None = None


def _chain(name: str, importer: Mapping[str, str], top: str) -> tuple[str, ...]:
    """From the plugin's module down to this one."""
    chain = [name]
    while chain[-1] != top and (by := importer.get(chain[-1])) not in (None, "__main__", *chain):
        chain.append(str(by))
    return tuple(reversed(chain))


_CHILD = r'''
import sys, json
ask = json.loads(sys.argv[1])
sys.path[:] = ask["path"]
import importlib, os, threading, time, traceback
import llm_hub.hookspecs  # the contract, which every plugin needs

imports, touched, known, during = [], [], set(), [None]

class Watch:
    """Notes each module that is looked for, and the module whose code asked for it."""
    def find_spec(self, name, path=None, target=None):
        if name not in known:
            known.add(name)
            frame = sys._getframe(1)
            while frame is not None and frame.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
                frame = frame.f_back
            imports.append((name, frame.f_globals.get("__name__", "?") if frame is not None else "?"))
        return None

def where():
    """The line of code that did it, beneath the standard library; None where the import system reads a module."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return None
        if name.startswith("<") or (name.startswith(library) and not name.startswith(packages)):
            frame = frame.f_back
            continue
        return "%s:%d" % (name, frame.f_lineno)
    return "an unknown place"

library = os.path.dirname(os.__file__) + os.sep
packages = os.path.join(library, "site-packages") + os.sep
NETWORK = {"socket.connect": "the network", "socket.getaddrinfo": "the network", "socket.gethostbyname": "the network",
           "socket.sendto": "the network", "socket.bind": "the network"}
PROCESS = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.startfile"}
FILES = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.chdir", "shutil.copyfile",
         "sqlite3.connect", "glob.glob", "tempfile.mkstemp", "tempfile.mkdtemp"}
WRITES = FILES - {"open", "os.listdir", "os.scandir", "glob.glob"}

def hook(event, arguments):
    now = during[0]
    if now is None:
        return
    if event in NETWORK or event in PROCESS or event in WRITES or (event in FILES and now == "manifest"):
        during[0] = None
        try:
            place = where()
            if place is not None:
                what = NETWORK.get(event) or ("another program" if event in PROCESS else "files")
                touched.append({"what": "%s: %s" % (what, told(event, arguments)), "during": now, "where": place})
        finally:
            during[0] = now

def told(event, arguments):
    shown = [str(one)[:100] for one in arguments if isinstance(one, (str, bytes, int, tuple))][:2]
    return "%s(%s)" % (event, ", ".join(shown))

sys.addaudithook(hook)
threads = {thread.ident for thread in threading.enumerate()}
sys.meta_path.insert(0, Watch())
before = set(sys.modules)
failure, seconds, chosen, started = None, 0.0, [], []
try:
    module, _, attribute = ask["reference"].partition(":")
    during[0] = "import"
    began = time.process_time()
    plugin = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        plugin = getattr(plugin, part)
    seconds = time.process_time() - began
    during[0] = None
    loaded = set(sys.modules) - before
    started = [thread.name for thread in threading.enumerate() if thread.ident not in threads]
    chosen = [pair for pair in imports if pair[0] in loaded]
    manifest = getattr(plugin, "llm_hub_manifest", None)
    if manifest is not None:
        during[0] = "manifest"
        manifest()
        during[0] = None
except BaseException:
    during[0] = None
    failure = traceback.format_exc()
answer = {"imports": chosen, "touched": touched, "threads": started, "seconds": seconds, "failure": failure}
with open(ask["answer"] + ".tmp", "w") as file:
    json.dump(answer, file)
os.replace(ask["answer"] + ".tmp", ask["answer"])
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # threads that the plugin started must not keep it
'''
"""Runs in the other interpreter, which need not have anything of the kit but the core itself."""
