"""Every variable and every key of the settings file: one table, for the parser and for the reference."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llm_hub.call import Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import BackendLimits, BatchLimits

__all__ = ["KEYS", "OWN_PLUGINS", "PLACEHOLDERS", "VARIABLES", "Key", "Variable", "variable_prefix"]

OWN_PLUGINS = ("llamacpp", "ollama", "tesseract", "vllm", "wordllama")
"""The plugins of this project: what may be suggested for installation."""


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """A variable of the environment.

    `setting` is where its value goes, as a path of keys; "{NAME}" in it is the backend whose prefix stands for
    "{PREFIX}" in `name`. `kind` is a key of `llm_hub.settings_kinds.KINDS`.
    """

    name: str
    kind: str
    setting: tuple[str, ...]
    group: str
    meaning: str
    default: str
    example: str

    @property
    def of_backend(self) -> bool:
        """Is there one for each backend?"""
        return self.name.startswith("{PREFIX}")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the settings file. In `path`, a part in capitals stands for a name; see `PLACEHOLDERS`."""

    path: tuple[str, ...]
    kind: str
    meaning: str
    default: str
    example: str


def variable_prefix(backend: str) -> str:
    """What the variables of a backend begin with: VLLM_TEXT for `vllm-text`."""
    return backend.upper().replace("-", "_").replace(".", "_")


_CHOOSING = "Choosing a backend"
_BACKENDS = "Backends"
_PLUGINS = "Plugins and switches"
_FILES = "Files"

VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="LLM_PROVIDER",
        kind="name",
        setting=("provider",),
        group=_CHOOSING,
        meaning="The backend that serves every capability it has a model for (text, if it has no model configured).",
        default="by route, GPU assignment, else Ollama",
        example="vllm",
    ),
    *(
        Variable(
            name=f"LLM_{capability.upper()}_PROVIDER",
            kind="name",
            setting=("providers", str(capability)),
            group=_CHOOSING,
            meaning=f"The backend that serves {what}; it comes before LLM_PROVIDER.",
            default="LLM_PROVIDER",
            example=example,
        )
        for capability, what, example in (
            (Capability.TEXT, "text", "vllm"),
            (Capability.EMBEDDING, "embeddings", "ollama"),
            (Capability.VISION, "vision", "ollama"),
        )
    ),
    *(
        Variable(
            name=f"LLM_VISION_{operation.upper()}_PROVIDER",
            kind="name",
            setting=("providers", f"vision.{operation}"),
            group=_CHOOSING,
            meaning=f"The backend for {what} alone; it comes before LLM_VISION_PROVIDER.",
            default="LLM_VISION_PROVIDER",
            example=example,
        )
        for operation, what, example in (
            ("describe", "describing images", "ollama"),
            ("read", "reading the text on images", "tesseract"),
        )
    ),
    Variable(
        name="LLM_FALLBACK",
        kind="names",
        setting=("fallback",),
        group=_CHOOSING,
        meaning="Backends to go on to, in this order, when the chosen one fails. Nothing falls back unless it is said.",
        default="none",
        example="ollama",
    ),
    Variable(
        name="{PREFIX}_BASE_URL",
        kind="address",
        setting=("backends", "{NAME}", "base_url"),
        group=_BACKENDS,
        meaning="The address of the backend's server.",
        default="the plugin's own",
        example="http://127.0.0.1:8000",
    ),
    *(
        Variable(
            name=f"{{PREFIX}}_{capability.upper()}_BASE_URL",
            kind="address",
            setting=("backends", "{NAME}", "base_urls", str(capability)),
            group=_BACKENDS,
            meaning=f"The address for {capability} alone, where another server has that.",
            default="{PREFIX}_BASE_URL",
            example=f"http://127.0.0.1:{port}",
        )
        for capability, port in ((Capability.TEXT, 8000), (Capability.EMBEDDING, 8001), (Capability.VISION, 8002))
    ),
    Variable(
        name="OLLAMA_HOST",
        kind="Ollama host",
        setting=("backends", "ollama", "base_url"),
        group=_BACKENDS,
        meaning="The address of the backend `ollama`, as Ollama itself reads it; OLLAMA_BASE_URL comes before it. An "
        "address to listen on everywhere (0.0.0.0) is taken for the loopback address.",
        default="127.0.0.1:11434",
        example="10.0.0.5:11434",
    ),
    Variable(
        name="{PREFIX}_MODEL",
        kind="model",
        setting=("backends", "{NAME}", "models", "text"),
        group=_BACKENDS,
        meaning="The model for text.",
        default="the plugin's own, else the server's only one",
        example="meta-llama/Llama-3.1-8B-Instruct",
    ),
    Variable(
        name="{PREFIX}_EMBEDDING_MODEL",
        kind="model",
        setting=("backends", "{NAME}", "models", "embedding"),
        group=_BACKENDS,
        meaning="The model for embeddings.",
        default="the plugin's own, else the server's only one",
        example="BAAI/bge-m3",
    ),
    Variable(
        name="{PREFIX}_VISION_MODEL",
        kind="model",
        setting=("backends", "{NAME}", "models", "vision"),
        group=_BACKENDS,
        meaning="The model for vision.",
        default="the plugin's own, else the server's only one",
        example="Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    Variable(
        name="{PREFIX}_API_KEY",
        kind="secret",
        setting=("backends", "{NAME}", "api_key"),
        group=_BACKENDS,
        meaning="The key that is sent to the backend as a bearer token.",
        default="none",
        example="change-me",
    ),
    Variable(
        name="LLM_HUB_PLUGINS",
        kind="plugins",
        setting=("allowed",),
        group=_PLUGINS,
        meaning="The only plugins that may be loaded, by their names or, with `dist:`, by the distributions that bring them.",
        default="all that are installed",
        example="ollama,tesseract,vllm",
    ),
    Variable(
        name="LLM_HUB_DISABLE",
        kind="plugins",
        setting=("disabled",),
        group=_PLUGINS,
        meaning="Plugins that may not be loaded, by name or `dist:`; it wins over LLM_HUB_PLUGINS.",
        default="none",
        example="llamacpp",
    ),
    Variable(
        name="LLM_HUB_OBSERVERS",
        kind="observers",
        setting=("observers",),
        group=_PLUGINS,
        meaning="Who is told of calls, switches and health: `log` writes a log record for each call, `prometheus` and "
        "`opentelemetry` count and time them (extras of llm-hub-core), and plugins may offer more.",
        default="none",
        example="log,prometheus",
    ),
    Variable(
        name="LLM_HUB_STRICT",
        kind="flag",
        setting=("strict",),
        group=_PLUGINS,
        meaning="Any broken plugin stops the start, not only one that is asked for.",
        default="0",
        example="1",
    ),
    Variable(
        name="LLM_HUB_PIN",
        kind="flag",
        setting=("pinned",),
        group=_PLUGINS,
        meaning="This process keeps the backends it started with and refuses switches by the control file.",
        default="0",
        example="1",
    ),
    Variable(
        name="LLM_HUB_CONFIG",
        kind="path",
        setting=("config",),
        group=_FILES,
        meaning="The settings file. It must exist; /dev/null stands for no file at all.",
        default="./llm-hub.toml, else llm-hub.toml in the user's configuration folder",
        example="/etc/llm-hub/llm-hub.toml",
    ),
    Variable(
        name="LLM_HUB_STATE",
        kind="path",
        setting=("state",),
        group=_FILES,
        meaning="The control file: processes that share it are switched together.",
        default="control.json in the user's state folder",
        example="/var/lib/llm-hub/control.json",
    ),
)
"""Every variable. Nothing else of the environment is read, but any OLLAMA_* variable counts as "Ollama is used"."""

_WAITS = {
    "connect": "Until the connection stands.",
    "load": "While the backend says that it is loading the model.",
    "first_token": "From then until the first piece of a streamed answer.",
    "between_tokens": "From one piece of a streamed answer to the next.",
    "whole": "For an answer that is not streamed.",
}

KEYS: tuple[Key, ...] = (
    Key(
        path=("backends", "NAME", "plugin"),
        kind="plugin",
        meaning="The plugin that this backend is an instance of.",
        default="NAME",
        example='plugin = "vllm"',
    ),
    Key(
        path=("backends", "NAME", "base_url"),
        kind="address",
        meaning="The address of its server.",
        default="the plugin's own",
        example='base_url = "http://10.0.0.5:8000"',
    ),
    Key(
        path=("backends", "NAME", "base_urls", "CAPABILITY"),
        kind="address",
        meaning="The address for one capability, where another server has that.",
        default="base_url",
        example='base_urls = { embedding = "http://10.0.0.6:8000" }',
    ),
    Key(
        path=("backends", "NAME", "models", "CAPABILITY"),
        kind="model",
        meaning="The model for each capability.",
        default="the plugin's own, else the server's only one",
        example='models = { text = "llama3.2", embedding = "nomic-embed-text" }',
    ),
    Key(
        path=("backends", "NAME", "api_key_env"),
        kind="variable",
        meaning="The variable that holds the key, sent as a bearer token. The key itself is refused in a file.",
        default="none",
        example='api_key_env = "TEAM_VLLM_KEY"',
    ),
    *(
        Key(
            path=("backends", "NAME", "timeouts", name),
            kind="seconds",
            meaning=_WAITS[name],
            default=f"{getattr(Timeouts(), name):g}",
            example=f"timeouts = {{ {name} = {getattr(Timeouts(), name):g} }}",
        )
        for name in Timeouts.__struct_fields__
    ),
    *(
        Key(
            path=("backends", "NAME", "prefixes", kind),
            kind="prefix",
            meaning=f"What is put before each text that is embedded as a {kind}.",
            default="what the model is known to need (nomic-embed-text, e5), else none",
            example=f'prefixes = {{ {kind} = "search_{kind}: " }}',
        )
        for kind in ("query", "document")
    ),
    Key(
        path=("backends", "NAME", "batch", "texts"),
        kind="count",
        meaning="The most texts in one request for embeddings; more are sent in several.",
        default=str(BatchLimits().texts),
        example="batch = { texts = 32 }",
    ),
    Key(
        path=("backends", "NAME", "batch", "characters"),
        kind="count",
        meaning="The most characters in one request for embeddings, about four to a token; a longer text goes alone.",
        default=str(BatchLimits().characters),
        example="batch = { characters = 50000 }",
    ),
    *(
        Key(
            path=("backends", "NAME", "limits", name),
            kind=kind,
            meaning=meaning,
            default=default,
            example=f"limits = {{ {name} = {example} }}",
        )
        for name, kind, meaning, default, example in (
            ("concurrent", "count", "The most calls at a time that one process gives it.", "no limit", "4"),
            (
                "queue",
                "number",
                "How many more calls may wait for a place; one more fails at once, or falls back.",
                str(BackendLimits().queue),
                "64",
            ),
            ("wait", "seconds", "How long a call may wait for a place.", f"{BackendLimits().wait:g}", "10"),
            (
                "retries",
                "number",
                "How often a call is sent again after a failure that may pass, within its deadline.",
                str(BackendLimits().retries),
                "1",
            ),
        )
    ),
    Key(
        path=("backends", "NAME", "OPTION"),
        kind="option",
        meaning="Every other key is an option of the plugin, which says what it may be.",
        default="the plugin's own",
        example="num_ctx = 8192",
    ),
    *(
        Key(
            path=("routes", route),
            kind="names",
            meaning=f"The backends for {what}: the first serves, the others are its fallbacks in this order.",
            default=default,
            example=example,
        )
        for route, what, default, example in (
            ("text", "text", "by GPU assignment, else Ollama", 'text = ["vllm-text", "ollama"]'),
            ("embedding", "embeddings", "by GPU assignment, else Ollama", 'embedding = ["ollama"]'),
            ("vision", "vision", "by GPU assignment, else Ollama; for reading, tesseract", 'vision = ["ollama"]'),
            ("vision.read", "reading the text on images", "that of vision", '"vision.read" = ["tesseract"]'),
            ("vision.describe", "describing images", "that of vision", '"vision.describe" = ["ollama"]'),
        )
    ),
    Key(
        path=("gpu", "assign", "NAME", "gpus"),
        kind="GPUs",
        meaning="The GPUs that this backend runs on.",
        default="[]: none in particular",
        example="gpus = [0]",
    ),
    Key(
        path=("gpu", "assign", "NAME", "capabilities"),
        kind="capabilities",
        meaning="What this assignment chooses the backend for, where no rule before it names one; [] for nothing.",
        default="those that the backend has a model for, else text",
        example='capabilities = ["text"]',
    ),
    Key(
        path=("gpu", "assign", "NAME", "memory"),
        kind="memory",
        meaning="The memory that it may take of each GPU.",
        default="the server's own",
        example='memory = "20 GiB"',
    ),
    Key(
        path=("gpu", "assign", "NAME", "exclusive"),
        kind="flag",
        meaning="No other backend may be assigned to these GPUs.",
        default="false",
        example="exclusive = true",
    ),
    Key(
        path=("gpu", "headroom"),
        kind="memory",
        meaning="The memory of each GPU that the plan leaves free.",
        default="512 MiB",
        example='headroom = "1 GiB"',
    ),
    *(
        Key(path=("services", "NAME", name), kind=kind, meaning=meaning, default=default, example=example)
        for name, kind, meaning, default, example in (
            (
                "image",
                "image",
                "The image of a service of your own, which `llm-hub compose` starts beside the backends and connects with them.",
                "none: it is built",
                'image = "registry.example/chat:1.4.0"',
            ),
            ("build", "line", "The folder with its Dockerfile.", "none", 'build = "./chat"'),
            ("command", "words", "What it runs.", "what its image says", 'command = ["uvicorn", "chat:app"]'),
            ("ports", "words", "The ports that are published.", "none", 'ports = ["127.0.0.1:8080:8080"]'),
            ("volumes", "words", "What it keeps or is given.", "none", 'volumes = ["chat-data:/data"]'),
            ("depends_on", "names", "Other services of your own that it waits for.", "none", 'depends_on = ["db"]'),
        )
    ),
    Key(
        path=("services", "NAME", "environment", "VARIABLE"),
        kind="line",
        meaning="A variable of it; `${NAME}` is the operator's variable of that name, and the way to give it a secret.",
        default="none",
        example='environment = { LOG_LEVEL = "info" }',
    ),
)
"""Every key of the settings file."""

PLACEHOLDERS: Mapping[str, str] = {
    "NAME": "the name of a backend (in `[services.NAME]`: of a service)",
    "CAPABILITY": "text, embedding or vision",
    "OPTION": "the name of an option of the plugin",
    "VARIABLE": "the name of an environment variable",
}
"""What stands for a name in the path of a key."""
