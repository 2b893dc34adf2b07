"""Throw-away environments with plugins in them: a real one that wheels are installed into, and a folder that is as good as one."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from llm_hub.testing.distributions import install_distribution, uninstall_distribution

__all__ = ["CommandFailed", "PluginEnvironment", "PluginFolder"]

CORE = "llm-hub-core"
_KEPT = ("UV_", "PIP_", "SSL_", "LANG", "LC_", "PATH", "SYSTEMROOT", "TEMP", "TMP")
"""What of this process's environment the commands get: nothing that would configure a hub."""


class CommandFailed(AssertionError):
    """A command in a throw-away environment ended with another exit code than it should; the message has its output."""


class _Runs:
    """What both kinds can do."""

    python: Path
    """The interpreter of the environment."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.home = self.folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout: float = 60.0,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `llm-hub` there, with nothing configured but `environ`, in an empty home folder that is its own.

        Raises CommandFailed if it exits with another code than 0, unless `check` is False; subprocess.TimeoutExpired.
        """
        return self.run_python("-m", "llm_hub", *arguments, check=check, timeout=timeout, environ=environ)

    def run_python(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout: float = 60.0,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter there, as `run`: `env.run_python("-c", "import acme")`."""
        return self._command([self.python, *arguments], check=check, timeout=timeout, environ=environ)

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_KEPT)}
        return {**kept, "HOME": str(self.home), "NO_COLOR": "1"}

    def _command(
        self,
        command: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 300.0,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.home,
            env={**self._environ(), **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            shown = " ".join(str(part) for part in command)
            raise CommandFailed(f"{shown}\nended with exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done


class PluginEnvironment(_Runs):
    """A virtual environment of its own, in which nothing is installed but the hub's core, what that needs, and `distributions`.

    distributions: wheels and source folders, or requirements such as `llm-hub-acme>=1`. Wheels whose dependencies are there
        need no network; folders need what builds them.
    core: a wheel or folder of `llm-hub-core`; by default the one that runs here, with what it depends on, is copied.
    offline: nothing is asked of a package index (with uv: of its cache at most), and what is missing is an error.

    Made by uv where there is one, else by the standard library with pip.

        with PluginEnvironment(tmp_path, "dist/llm_hub_acme-1.0-py3-none-any.whl", offline=True) as env:
            env.run("plugins", "--check")
            env.install("dist/llm_hub_acme-1.1-py3-none-any.whl")
            env.uninstall("llm-hub-acme")
    """

    def __init__(
        self,
        folder: Path | str,
        *distributions: Path | str,
        core: Path | str | None = None,
        offline: bool = False,
        uv: bool | None = None,
    ) -> None:
        super().__init__(folder)
        self.offline = offline
        self._uv = None if uv is False else find_uv()
        if uv and self._uv is None:
            raise FileNotFoundError("uv is not installed")
        self.venv = self.folder / "venv"
        scripts = self.venv / ("Scripts" if os.name == "nt" else "bin")
        self.python = scripts / ("python.exe" if os.name == "nt" else "python")
        if self._uv is not None:
            self._command([self._uv, "venv", "--quiet", "--no-project", "--python", sys.executable, self.venv])
        else:
            self._command([sys.executable, "-m", "venv", self.venv])
        if core is None:
            copy_distributions([CORE], self.site)
            self.install(*distributions)
        else:
            self.install(core, *distributions)

    def __enter__(self) -> PluginEnvironment:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.venv, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def site(self) -> Path:
        """Its site-packages."""
        if os.name == "nt":
            return self.venv / "Lib" / "site-packages"
        return self.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def install(self, *distributions: Path | str) -> None:
        """Install wheels, folders or requirements; of one that is there already, this version in its place.

        Raises CommandFailed with what the installer said.
        """
        wanted = [_absolute(one) for one in distributions]
        if not wanted:
            return
        if self._uv is not None:
            options = ["--offline"] if self.offline else []
            self._command([self._uv, "pip", "install", "--quiet", "--python", self.python, *options, *wanted])
        else:
            options = ["--disable-pip-version-check", *(["--no-index"] if self.offline else [])]
            self._command([self.python, "-m", "pip", "install", "--quiet", *options, *wanted])

    def uninstall(self, name: str) -> None:
        """Take a distribution out again. Raises CommandFailed."""
        if self._uv is not None:
            self._command([self._uv, "pip", "uninstall", "--quiet", "--python", self.python, name])
        else:
            self._command([self.python, "-m", "pip", "uninstall", "--quiet", "--yes", name])

    def _environ(self) -> dict[str, str]:
        found = super()._environ()
        if "UV_CACHE_DIR" not in found and (cache := _uv_cache()) is not None:
            found["UV_CACHE_DIR"] = str(cache)  # its home is another one
        return found


class PluginFolder(_Runs):
    """A folder of plugins that this interpreter sees beside what is installed: a light environment, made in no time.

    What `install_distribution` lays into it is found by `run`, and by this process once `path` is on `sys.path`.

        plugins = PluginFolder(tmp_path)
        plugins.add("llm-hub-acme", entry_points={"llm_hub.text": {"acme": "acme.plugin"}}, modules={"acme.plugin": SOURCE})
        plugins.run("plugins", "--check", environ={"LLM_HUB_PLUGINS": "acme"})
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.python = Path(sys.executable)
        self.path = self.folder / "site"
        self.path.mkdir(exist_ok=True)

    def add(
        self,
        name: str,
        *,
        version: str = "1.0",
        entry_points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str] | None = None,
    ) -> Path:
        """Install a distribution, or upgrade it; see `install_distribution`."""
        return install_distribution(self.path, name, version=version, entry_points=entry_points, modules=modules)

    def remove(self, name: str) -> bool:
        """Uninstall a distribution. False if it is not there."""
        return uninstall_distribution(self.path, name)

    def _environ(self) -> dict[str, str]:
        return {**super()._environ(), "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}


# -- what they are made with ------------------------------------------------------------------------------------------


def find_uv() -> Path | None:
    """The program uv: beside this interpreter, or on the PATH."""
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    found = shutil.which("uv", path=places)
    return None if found is None else Path(found)


def copy_distributions(names: Iterable[str], site: Path) -> list[str]:
    """Copy installed distributions, with what they need, into another site-packages; the names of all.

    An editable one is copied as the reference to its checkout that it is. Raises
    PackageNotFoundError for one that is not installed.
    """
    copied: list[str] = []
    todo = list(names)
    while todo:
        distribution = importlib.metadata.distribution(todo.pop())
        if distribution.name in copied:
            continue
        copied.append(distribution.name)
        for file in distribution.files or ():
            relative = PurePosixPath(file)
            if ".." in relative.parts or relative.is_absolute():
                continue  # a program beside the interpreter, which would start the other one
            source, target = Path(str(distribution.locate_file(file))), site / relative
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        todo += _needed(distribution)
    return copied


def _needed(distribution: importlib.metadata.Distribution, extras: Iterable[str] = ("",)) -> Iterator[str]:
    """The names of what a distribution needs here, and what the extras need that it asks of those (httpcore[asyncio])."""
    from packaging.requirements import Requirement

    for line in distribution.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement.name
            if requirement.extras:
                yield from _needed(importlib.metadata.distribution(requirement.name), sorted(requirement.extras))


def _absolute(distribution: Path | str) -> str:
    """A file or folder from here, as commands run elsewhere; a requirement as it is."""
    if isinstance(distribution, Path) or distribution.endswith(".whl") or os.sep in distribution:
        path = Path(distribution).absolute()
        if not path.exists():
            raise FileNotFoundError(f"{path} is neither a wheel nor a folder")
        return str(path)
    return distribution


def _uv_cache() -> Path | None:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "uv" if (home / "uv").is_dir() else None
