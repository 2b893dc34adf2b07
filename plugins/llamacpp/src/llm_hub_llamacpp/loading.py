"""Models in memory: one llama.cpp server for each, shared by all backends of the process that want it alike."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llm_hub.errors import BackendFailed, SettingsError
from llm_hub.gguf import Header, read_header
from llm_hub_llamacpp.naming import find_model
from llm_hub_llamacpp.settings import DEFAULT_CONTEXT, LlamaCppSettings, available_cpus

__all__ = ["Loaded", "Plan", "abandon_all", "first_complaint", "load", "make_plan", "parameters", "reason_of_failure"]

_PIECE = 8 << 20  # bytes that are read at once
_AUTOPSY_SECONDS = 60.0
_LONGEST_FOLDER = 70  # a socket's path may have 103 bytes (macOS) or 107 (Linux)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and how. Equal plans share one model in memory."""

    path: str
    size: int
    changed: int
    context: int
    n_parallel: int
    threads: int
    n_gpu_layers: int | None = None
    n_batch: int | None = None
    mmproj: str | None = None
    chat_template: str = ""
    cache_ram_mib: int = 0
    alias: str = ""
    embedding: bool = False
    pooling: str | None = None


def make_plan(name: str, settings: LlamaCppSettings) -> tuple[Plan, Header]:
    """What these settings mean for this model, after a look at its files.

    Raises ModelNotFound, BackendFailed for a damaged file, SettingsError for settings that do not fit it.
    """
    path = find_model(name)
    header = _read(path)
    if header.is_projector:
        raise SettingsError(
            f"{path} is a projector (through which a model sees) and no model",
            hint="Set it as mmproj, and name the model it belongs to.",
        )
    trained = header.context_length
    context = settings.n_ctx or min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    if trained is not None and context > trained:
        raise SettingsError(
            f"n_ctx is {context}, and {name!r} was trained for a context of {trained} tokens",
            hint=f"Set n_ctx to {trained} or less.",
        )
    plan = Plan(
        path=str(path),
        size=header.size,
        changed=path.stat().st_mtime_ns,
        context=context,
        n_parallel=settings.n_parallel,
        threads=settings.threads or available_cpus(),
        n_gpu_layers=settings.n_gpu_layers,
        n_batch=settings.n_batch,
        mmproj=None if settings.mmproj is None else str(_projector(settings.mmproj)),
        chat_template="" if settings.chat_template is None else _template(settings.chat_template),
        cache_ram_mib=settings.cache_ram_mib,
        alias=name,
    )
    if plan.chat_template:
        header = msgspec.structs.replace(header, chat_template=plan.chat_template)
    return plan, header


def _read(path: Path) -> Header:
    try:
        return read_header(path)
    except OSError as error:
        raise BackendFailed(f"{path} cannot be read: {error.strerror or error}") from error


def _projector(name: str) -> Path:
    path = find_model(name, what="projector (mmproj)")
    if not _read(path).is_projector:
        raise SettingsError(f"mmproj is {path}, and that is no projector", hint="Name the mmproj file of the model.")
    return path


def _template(name: str) -> str:
    path = Path(name).expanduser()
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the chat template {path} cannot be read: {error}",
            hint="Set chat_template to a file with a Jinja template.",
        ) from error


# -- loading ----------------------------------------------------------------------------------------------------------


class Loaded:
    """A model in memory. It goes out of memory with the last reference to this."""

    def __init__(self, plan: Plan, server: Any) -> None:
        self.plan = plan
        self.server = server


_loaded: weakref.WeakValueDictionary[Plan, Loaded] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load(plan: Plan, progress: Callable[[float | None], None]) -> Loaded:
    """The model of this plan, loaded unless it is in memory already. One at a time.

    `progress` is told the fraction that has been read, in [0, 1]. Raises BackendFailed with llama.cpp's own reason.
    """
    with _loading:
        found = _loaded.get(plan)
        if found is None:
            progress(0.0)
            _warm([plan.path, *([plan.mmproj] if plan.mmproj else [])], progress)
            if _forked_with_models and (said := reason_of_failure(plan)) is not None:
                raise _unloadable(plan, said)
            found = _loaded[plan] = Loaded(plan, _serve_privately(plan))
            if _forked_with_models:
                _keep_for_ever(found)
        return found


def _warm(paths: list[str], progress: Callable[[float | None], None]) -> None:
    """Read the files, so that they are in the system's cache when llama.cpp maps them.

    xllamacpp holds the interpreter's lock while it loads, and from a disk that takes long: every thread and event loop of
    the process would stand still. This way the reading lets them run, and can say how far it is.
    """
    total = sum(Path(path).stat().st_size for path in paths)
    if total > _free_memory() // 2:
        return  # what is read first would be gone again when it is needed
    buffer = memoryview(bytearray(_PIECE))
    read = told = 0
    for path in paths:
        with Path(path).open("rb", buffering=0) as file:
            while number := file.readinto(buffer):
                read += number
                if (percent := 100 * read // total) > told:
                    told = percent
                    progress(read / total)


def _free_memory() -> int:
    """Bytes of memory that could be used, as far as it is known."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 8 << 30  # not Linux


def _serve_privately(plan: Plan) -> Any:
    """A server that nobody outside this process can reach.

    xllamacpp's server always listens. Here it does so on a Unix socket in a folder of our own, which is removed at once;
    where there are no such sockets, on a loopback port with a random key.
    """
    import xllamacpp

    params = parameters(plan)
    params.api_keys = [secrets.token_hex(32)]
    params.endpoint_metrics = True
    params.n_threads_http = 1
    folder = _private_folder()
    try:
        if folder is not None:
            params.hostnames = [str(Path(folder, "private.sock"))]
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise _unloadable(plan, reason_of_failure(plan) or str(error)) from error
        # A server that is deleted before its loop has begun waits for it for ever, and holds the interpreter's lock while it
        # does. An answer from the loop shows that it has begun.
        server.handle_metrics()
        return server
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _unloadable(plan: Plan, said: str) -> BackendFailed:
    return BackendFailed(
        f"llama.cpp cannot load {plan.path}: {said}",
        hint="Check the file, the memory that is free, and the backend's settings.",
    )


def _private_folder() -> str | None:
    """A new folder that only this user can enter, with a path short enough for a socket; None where there are none."""
    if sys.platform == "win32":
        return None
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="llm-hub-", dir=usual if len(usual) < _LONGEST_FOLDER else "/tmp")  # noqa: S108 - made by mkdtemp


def parameters(plan: Plan) -> Any:
    """llama.cpp's parameters for this plan: quiet, and with nothing on offer that was not asked for."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = plan.path
    params.n_ctx = plan.context * plan.n_parallel  # llama.cpp divides it among the calls
    params.n_parallel = plan.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = plan.threads
    params.cache_ram_mib = plan.cache_ram_mib
    params.verbosity = 0
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.cors_origins = ""
    gpu = _has_gpu() and plan.n_gpu_layers != 0
    # llama.cpp tries out how many layers fit, which costs time where there is nothing to fit them into.
    params.fit_params = gpu and plan.n_gpu_layers is None
    if plan.n_gpu_layers is not None:
        params.n_gpu_layers = plan.n_gpu_layers
    params.n_batch = plan.n_batch or (2048 if gpu else 512 if plan.mmproj else 64)
    params.n_ubatch = min(params.n_batch, 512)
    if plan.mmproj:
        params.mmproj.path = plan.mmproj
    if plan.chat_template:
        params.chat_template = plan.chat_template
    if plan.alias:
        params.model_alias = {plan.alias}
    if plan.embedding:
        params.embedding = True
        # With a cache for each call, llama.cpp gives texts that come together equal pieces of a batch, and the mean of a longer
        # one is that of its last piece (cosines of 0.8 with the same text alone).
        params.kv_unified = True
        params.kv_unified_per_slot = plan.context
        params.n_batch = params.n_ubatch = plan.context  # a text is embedded in one go
        if plan.pooling is not None:
            params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{plan.pooling.upper()}")
    return params


def _has_gpu() -> bool:
    import xllamacpp

    kinds = xllamacpp.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(device["type"] in gpus for device in xllamacpp.get_device_info())


# -- why it failed ----------------------------------------------------------------------------------------------------

_AUTOPSY = """\
import os, sys, msgspec, xllamacpp
from llm_hub_llamacpp.loading import Plan, parameters
params = parameters(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
params.verbosity = 1
try:
    server = xllamacpp.Server(params)
except RuntimeError:
    pass
sys.stderr.flush()
os._exit(0)
"""


def reason_of_failure(plan: Plan) -> str | None:
    """Why llama.cpp refuses this, in its own words; None if they cannot be had.

    It only logs them, to the standard error of the process and from threads of its own. So it is asked once more, in a
    process whose standard error is ours to read.
    """
    if not sys.executable:
        return None
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", _AUTOPSY],
            input=msgspec.json.encode(plan),
            capture_output=True,
            timeout=_AUTOPSY_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return first_complaint(said.stderr.decode("utf-8", "replace"))


def first_complaint(log: str) -> str | None:
    """The first error of a log of llama.cpp, which is the cause of those after it."""
    for line in log.splitlines():
        stamp, mark, text = line.partition(" E ")
        if mark and stamp.replace(".", "").isdigit():
            function, colon, message = text.strip().partition(": ")
            return message.removeprefix("error: ").removeprefix("error loading model: ") if colon else function
    return None


# -- forks ------------------------------------------------------------------------------------------------------------

_forked_with_models = False
"""Is this the child of a process that had models in memory?

llama.cpp keeps threads for the whole process beside those of each server. In such a child they are gone, and whatever waits
for them to end (deleting a server, a load that fails, the clean-up at exit) hangs or aborts. So there nothing is deleted,
a load is tried in another process first, and the C library is told to leave without cleaning up.
"""


def abandon_all() -> None:
    """In the child of a fork: forget the models without touching them, because their threads stayed in the parent."""
    global _loading, _forked_with_models
    _loading = threading.Lock()
    for loaded in list(_loaded.values()):
        _keep_for_ever(loaded)
    if len(_loaded) and not _forked_with_models:
        _forked_with_models = True
        with contextlib.suppress(AttributeError, OSError):  # glibc alone has on_exit
            libc = ctypes.CDLL(None)
            libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    _loaded.clear()


def _keep_for_ever(loaded: Loaded) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded.server))
