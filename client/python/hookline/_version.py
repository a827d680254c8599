"""The package's version, which stands in CMakeLists.txt alone."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path


def _version() -> str:
    """The version in an installed package's metadata, or the project's where it is imported from the repository."""
    package = Path(__file__).parent
    if package.parent != package.parents[2] / "client" / "python":
        return version("hookline")
    project = (package.parents[2] / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(hookline VERSION ([0-9.]+)", project)
    if found is None:
        raise ImportError("CMakeLists.txt does not say hookline's version")
    return found.group(1)


__version__ = _version()
