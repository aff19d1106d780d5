"""Where vgen keeps what it can make again: under $VGEN_CACHE, else vgen in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """$VGEN_CACHE, else $XDG_CACHE_HOME/vgen, else ~/.cache/vgen; it need not exist."""
    home = os.environ.get("VGEN_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vgen"
    return base.expanduser()


def private_folder(name: str) -> Path:
    """A folder of `cache_home` to load code from, made if it is not there.

    Raises:
        OSError: it cannot be made, or others may write to it: what lies there could then be anybody's.
    """
    folder = cache_home() / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others, so nothing is loaded from it")
    return folder
