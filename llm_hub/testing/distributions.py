"""Throw-away distributions: what `pip install` would leave in a folder, for tests of how plugins are found and loaded."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib
import io
import re
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["install_distribution", "make_wheel", "uninstall_distribution"]

_NAME = re.compile(r"[A-Z0-9]|[A-Z0-9][A-Z0-9._-]*[A-Z0-9]", re.IGNORECASE)


def install_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    summary: str = "A throw-away distribution.",
    requires: Sequence[str] = (),
) -> Path:
    """Lay a distribution into `folder`, which is to be put on `sys.path` or PYTHONPATH; returns its .dist-info folder.

    entry_points: of each group, the object reference under each name: `{"llm_hub.text": {"acme": "acme.plugin"}}`.
    modules: the source under each dotted name; packages in between are made.
    requires: what it depends on, as in `Requires-Dist`.

    One of the same name that is there already is uninstalled first, as an upgrade does. Modules that were imported stay
    imported. Format: PyPA "Recording installed projects". Raises ValueError for a name that no distribution may have.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name of a distribution")
    uninstall_distribution(folder, name)
    stem = re.sub(r"[-_.]+", "_", name).lower()
    info = folder / f"{stem}-{version}.dist-info"
    info.mkdir(parents=True)
    files = {
        info / "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
        + "".join(f"Requires-Dist: {requirement}\n" for requirement in requires),
        info / "WHEEL": "Wheel-Version: 1.0\nGenerator: llm-hub\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        info / "INSTALLER": "llm-hub\n",
        info / "entry_points.txt": "\n".join(
            f"[{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in entries.items())
            for group, entries in entry_points.items()
        ),
    }
    for dotted, source in (modules or {}).items():
        path = folder.joinpath(*dotted.split(".")).with_suffix(".py")
        for parent in path.relative_to(folder).parents[:-1]:
            if not (folder / parent / "__init__.py").exists():  # it may be another distribution's
                files.setdefault(folder / parent / "__init__.py", "")
        files[path] = textwrap.dedent(source)
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([path.relative_to(folder).as_posix(), f"sha256={digest}", len(content)])
    writer.writerow([(info / "RECORD").relative_to(folder).as_posix(), "", ""])
    (info / "RECORD").write_text(record.getvalue(), encoding="utf-8")
    importlib.invalidate_caches()
    return info


def make_wheel(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    summary: str = "A throw-away distribution.",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel into `folder`, with what `install_distribution` would lay there, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        inside = Path(made)
        info = install_distribution(
            inside,
            name,
            version=version,
            entry_points=entry_points,
            modules=modules,
            summary=summary,
            requires=requires,
        )
        path = folder / f"{info.name.removesuffix('.dist-info')}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for file in sorted(inside.rglob("*")):
                if file.is_file():
                    wheel.write(file, file.relative_to(inside).as_posix())
    return path


def uninstall_distribution(folder: Path, name: str) -> bool:
    """Take a distribution out of `folder` again, with all that its RECORD lists. False if it is not there."""
    stem = re.sub(r"[-_.]+", "_", name).lower()
    found = [info for info in folder.glob("*.dist-info") if info.name.lower().partition("-")[0] == stem]
    for info in found:
        for row in csv.reader((info / "RECORD").read_text("utf-8").splitlines()):
            path = folder / row[0]
            path.unlink(missing_ok=True)
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
            for parent in path.relative_to(folder).parents[:-1]:
                with contextlib.suppress(OSError):  # not empty, or gone already
                    (folder / parent).rmdir()
    importlib.invalidate_caches()
    return bool(found)
