"""The files below a folder, by the names under which they are found."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path


def walk_files(root: Path) -> list[Path]:
    """Every name below a folder that is not a folder, in the order of relative names.

    Linked folders are entered under the link's name. Each folder is entered once, by its own name where it lies below
    `root` itself, so that links in a circle end.

    Args:
        root: a folder, or a link to one.
    Raises:
        OSError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    linked: deque[Path] = deque([root])
    while linked:
        below = [linked.popleft()]
        while below:
            folder = below.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if not entry.is_dir():
                        found.append(folder / entry.name)
                    else:
                        (linked if entry.is_symlink() else below).append(folder / entry.name)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
