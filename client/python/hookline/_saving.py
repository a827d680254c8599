"""Saves activations as `.pt` files, one for each hook point.

A file holds what `torch.save` writes for the tensor, so that `torch.load` reads it. It is named after the hook point,
with dots replaced by underscores. Since that name is ambiguous, the file also holds the exact name: a `.pt` file is a
zip archive, and `hookline.json` is one more member of it.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MEMBER = "hookline.json"
# Matches file names, to restore the hook point's name if the file does not hold it.
_FILE_NAME = re.compile(
    r"(?P<block>blocks_\d+_)?(?P<module>(?:attn|mlp|ln1|ln2|ln1_post|ln2_post|ln_final)_)?(?P<tensor>hook_\w+)"
)


def file_name(hook_point: str) -> str:
    return hook_point.replace(".", "_").replace("/", "_") + ".pt"


def save(folder: Path, activations: Mapping[str, Any]) -> dict[str, Path]:
    """Writes one file for each tensor; a file gets its name when it is complete. Returns the path of each."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for hook_point, rows in activations.items():
        path = folder / file_name(hook_point)
        if path in paths.values():  # "a.b_c" beside "a_b.c"
            stems = (path.with_name(f"{path.stem}~{number}.pt") for number in range(2, len(activations) + 2))
            path = next(candidate for candidate in stems if candidate not in paths.values())
        part = path.with_name(path.name + ".part")
        torch.save(rows, part)
        with zipfile.ZipFile(part, "a") as archive:
            folder_inside = archive.namelist()[0].split("/")[0]  # torch.load expects all members in one folder
            archive.writestr(
                f"{folder_inside}/{_MEMBER}", json.dumps({"hook_point": hook_point, "shape": list(rows.shape)})
            )
        os.replace(part, path)
        paths[hook_point] = path
    return paths


def hook_point_of(path: Path) -> str:
    """Returns the hook point's exact name, which the file holds; for other files, the name that the file
    name suggests."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/" + _MEMBER))
            return str(json.loads(archive.read(member))["hook_point"])
    except (StopIteration, KeyError, ValueError, zipfile.BadZipFile):  # not written by this package
        pass
    match = _FILE_NAME.fullmatch(path.stem)
    if match is None:
        return path.stem
    block = (match["block"] or "")[:-1].replace("_", ".")
    return ".".join(part for part in (block, (match["module"] or "")[:-1], match["tensor"]) if part)


def find(folder: Path, hook_points: Sequence[str] | None) -> dict[str, Path | None]:
    """Returns hook point -> its file, None if there is none. Without `hook_points`: all files of the folder."""
    files = {hook_point_of(path): path for path in sorted(folder.glob("*.pt"))}
    if hook_points is None:
        return dict(files)
    found: dict[str, Path | None] = {}
    for hook_point in hook_points:
        by_file_name = folder / file_name(hook_point)
        found[hook_point] = files.get(hook_point) or (by_file_name if by_file_name.exists() else None)
    return found
