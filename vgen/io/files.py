"""Reading and writing JSON, files and folders written whole or not at all, and the folder of caches."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, OutputError, VgenError

_PRIVATE = 0o600
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def exists_message(path: Path) -> str:
    """The message for an output that is there already."""
    return f"{path} exists already; use another name, or --overwrite (overwrite=True) to replace it."


@contextmanager
def part_of(path: Path, *, overwrite: bool, folder: bool = False, bytes_needed: int = 0) -> Iterator[Path]:
    """A place next to `path` to write to; it takes the name `path` when the block ends without an error.

    The name ends in `.part` and is unique. Everything written is on the disk before it is renamed. Without `overwrite`
    the rename fails if `path` has come to exist meanwhile: of two processes with one output, one wins. After any
    failure nothing is left of the part.

    Args:
        path: final name; its parent exists.
        overwrite: replace what is there.
        folder: the part is a folder, made here.
        bytes_needed: upper bound of what will be written, for the message when the disk is full; 0: not known.
    Raises:
        OutputError: `path` exists, the place cannot be written, or the disk is full.
    """
    part = path.with_name(f"{path.name[:32]}.{secrets.token_hex(6)}.part")
    try:
        if folder:
            part.mkdir()
        yield part
        publish(part, path, overwrite=overwrite)
    except OSError as error:
        raise _output_error(path, error, bytes_needed) from None
    finally:
        if folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def read_json(file: Path, error: type[VgenError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: of UTF-8 text, with or without a byte order mark.
        error: raised where the file is missing, cannot be read or holds something else.
    """
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise error(f"{file} is missing.") from None
    except OSError as fault:
        raise error(f"{file} cannot be read: {fault.strerror or fault}.") from None
    return json_object(text, str(file), error)


def json_object(text: str | bytes, name: str, error: type[VgenError] = CheckpointError) -> dict[str, Any]:
    """The object that JSON text holds; raises `error`, which calls the text `name`, where it holds none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{name} is not JSON: {fault}.") from None
    if not isinstance(content, dict):
        raise error(f"{name} is not a JSON object.")
    return content


def write_text(path: Path, text: str) -> bool:
    """Replace a text file in one step; returns False where it holds just that already.

    What UTF-8 cannot say (bytes of file names) is escaped. Missing folders are made.

    Raises:
        OutputError: it cannot be written.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any, *, indent: int = 1, sort_keys: bool = False) -> bool:
    """As `write_text`, with `content` as JSON."""
    return write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> bool:
    """As `write_text`, with `content` as it is."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _output_error(path, error, len(content)) from None
    with part_of(path, overwrite=True, bytes_needed=len(content)) as part:
        part.write_bytes(content)
    return True


def check_writable(folder: Path) -> None:
    """Make and remove a file in `folder`: permission bits alone do not tell.

    Raises:
        OutputError: it cannot be written to.
    """
    try:
        _mode_of_new_files(folder)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be written to: {error.strerror or error}.") from None


def follow_umask(path: Path) -> None:
    """Give a finished file, or the files of a folder, the mode that the umask gives new files.

    Files that are made private (mode 0600) first, as those of safetensors are, stay so under their final name.
    """
    mode = _mode_of_new_files(path.parent)
    for file in path.rglob("*") if path.is_dir() else (path,):
        found = file.lstat()
        private = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == _PRIVATE
        if private and mode != _PRIVATE and found.st_nlink == 1:  # a linked file belongs to somebody else, too
            file.chmod(mode)


def _mode_of_new_files(folder: Path) -> int:
    """Of one that is made there and removed again."""
    new = folder / f".{secrets.token_hex(6)}.part"
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return stat.S_IMODE(new.stat().st_mode)
    finally:
        new.unlink()


def _output_error(path: Path, error: OSError, bytes_needed: int) -> OutputError:
    if error.errno in _FULL:
        facts = [f"at most {bytes_needed:,} bytes needed"] if bytes_needed else []
        with contextlib.suppress(OSError):
            facts.append(f"{shutil.disk_usage(path.parent).free:,} bytes are free")
        return OutputError(f"{path} could not be written: the disk is full ({', '.join(facts)}).")
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return OutputError(exists_message(path))
    return OutputError(f"{path} could not be written: {error.strerror or error}.")


def publish(part: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file or folder its name, once all of it is on the disk; see `part_of`.

    Raises:
        OSError: `path` exists, or the place cannot be written.
    """
    follow_umask(part)
    for file in (*part.rglob("*"), part):
        _sync(file)
    _rename(part, path, overwrite)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Put the content of a file or folder on the disk, so that a loss of power cannot take it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def _rename(part: Path, path: Path, overwrite: bool) -> None:
    if part.is_dir():
        _rename_folder(part, path, overwrite)
    elif overwrite:
        os.replace(part, path)
    else:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(part, path)


def _rename_folder(part: Path, path: Path, overwrite: bool) -> None:
    """Rename onto nothing or onto an empty folder; a full one is put aside first if it may be replaced."""
    if not overwrite or not path.exists():
        os.rename(part, path)
        return
    aside = path.with_name(f"{path.name[:32]}.{secrets.token_hex(6)}.part")
    os.rename(path, aside)
    try:
        os.rename(part, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def cache_home() -> Path:
    """$VGEN_CACHE, else $XDG_CACHE_HOME/vgen, else ~/.cache/vgen; it need not exist."""
    home = os.environ.get("VGEN_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vgen"
    return base.expanduser()


def private_folder(name: str) -> Path:
    """A folder of `cache_home` to load code from, made if it is not there.

    Raises:
        OSError: it cannot be made, or others may write to it: its content could then be anybody's.
    """
    folder = cache_home() / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others, so nothing is loaded from it")
    return folder
