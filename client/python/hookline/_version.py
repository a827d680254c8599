"""The package's version, which is only written in CMakeLists.txt."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path


def _version() -> str:
    """Returns the version from an installed package's metadata, or the project's if imported from the repository."""
    package = Path(__file__).parent
    if package.parent != package.parents[2] / "client" / "python":
        return version("hookline")
    project = (package.parents[2] / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(hookline VERSION ([0-9.]+)", project)
    if found is None:
        raise ImportError("CMakeLists.txt does not say hookline's version")
    return found.group(1)


__version__ = _version()
