"""Which kind of video file this is, by its bytes, and whether all of it is there.

The kind decides which demuxer is asked, so a playlist, a concat list or an SDP file named `.mp4` never reaches a
demuxer that would open other files or addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vgen.errors import MediaError


class Container(NamedTuple):
    """A kind of video file: its name, and what reads it: a demuxer, or Pillow's plugin for an animated picture."""

    name: str
    demuxer: str | None = None
    pillow: str | None = None


MP4 = Container("mp4", "mov")
WEBM = Container("webm", "matroska")
AVI = Container("avi", "avi")
GIF = Container("gif", pillow="GIF")
WEBP = Container("webp", pillow="WEBP")
APNG = Container("png", pillow="PNG")
FOLDER = Container("png folder")

_MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"[playlist]", b"<?xml", b"<MPD")
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_EBML_SEGMENT = 0x18538067
_EBML_CLUSTER = 0x1F43B675
_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP_ANIMATED = 2


def local_file(path: str | Path, what: str = "file") -> Path:
    """`path` as an existing local file or folder.

    Raises:
        MediaError: an address (`http://...`, `concat:...`), nothing there, or neither a file nor a folder.
    """
    text = str(path)
    found = Path(text)
    try:
        exists = found.exists()
    except (OSError, ValueError) as error:
        raise MediaError(f"{text!r} is not a usable name of a {what}: {error}.") from None
    if exists:
        if found.is_file() and _is_apple_double(found):
            raise MediaError(
                f"{text} holds what macOS notes about {found.name[2:]} (AppleDouble), and no {what}: "
                f"give {found.with_name(found.name[2:])}."
            )
        if found.is_file() or found.is_dir():
            return found
        raise MediaError(f"{text} is neither a file nor a folder; only local files are read.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text):
        raise MediaError(f"{text} is not a local file: addresses and protocols are never opened; give a file's path.")
    raise MediaError(f"{text} does not exist: there is no such {what}.")


def _is_apple_double(path: Path) -> bool:
    """Whether a file is the companion `._NAME` that macOS leaves on foreign disks and in archives."""
    if not path.name.startswith("._"):
        return False
    with path.open("rb") as stream:
        return stream.read(4) == _APPLE_DOUBLE


def identify(path: Path) -> Container:
    """The kind of the video file or folder at `path`, by content; also checks that a file ends where it says.

    Raises:
        MediaError: empty, truncated, a playlist, text, or of a kind that is not read.
    """
    if path.is_dir():
        return FOLDER
    size = path.stat().st_size
    if size == 0:
        raise MediaError(f"{path} is empty (0 bytes).")
    with path.open("rb") as stream:
        head = stream.read(64)
        stream.seek(0)
        container, check = _kind_of(path, head)
        if check is not None:
            check(path, stream, size)
    return container


def _kind_of(path: Path, head: bytes) -> tuple[Container, Callable[[Path, BinaryIO, int], None] | None]:
    if head[4:8] in _MP4_FIRST_BOXES:
        return MP4, _check_boxes
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return WEBM, _check_ebml
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return GIF, _check_gif
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return AVI, _check_riff
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X" and head[20] & _WEBP_ANIMATED:
            return WEBP, _check_riff
        raise _still(path)
    if head.startswith(_PNG):
        return APNG, _check_png
    if head.startswith(b"\xff\xd8\xff"):
        raise _still(path)
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_PLAYLIST_STARTS):
        raise MediaError(f"{path} is a playlist or a list of files, not a video; name the video file itself.")
    cause = "it looks like text" if _is_text(head) else "its first bytes are of no known kind"
    raise MediaError(
        f"{path} is not a video: {cause}; mp4, mov, webm, mkv, avi, animated gif, webp and "
        "png, and folders of png are read."
    )


def _still(path: Path) -> MediaError:
    return MediaError(f"{path} is a still picture, and a video is needed.")


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\x0c" for byte in head)


def _truncated(path: Path, part: str, needed: int, size: int) -> MediaError:
    return MediaError(f"{path} is truncated: {part} ends at byte {needed:,}, the file at {size:,}.")


def _check_boxes(path: Path, stream: BinaryIO, size: int) -> None:
    """Walk the top-level boxes of an MP4 file: all whole, and a `moov` among them."""
    position, names = 0, []
    while position < size:
        stream.seek(position)
        header = stream.read(16)
        if len(header) < 8:
            raise _truncated(path, "the next part's header", position + 8, size)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            raise MediaError(f"{path} is damaged: the part {name!r} at byte {position:,} has length {length}.")
        if position + length > size:
            raise _truncated(path, f"its part {name.decode('latin-1')!r}", position + length, size)
        names.append(name)
        position += length
    if b"moov" not in names:
        raise MediaError(f"{path} has no index ('moov'): its writing was never finished, or it is truncated.")


def _check_riff(path: Path, stream: BinaryIO, size: int) -> None:
    needed = int.from_bytes(stream.read(8)[4:], "little") + 8
    if needed > size:
        raise _truncated(path, "its RIFF list", needed, size)


def _ebml_element(stream: BinaryIO) -> tuple[int, int | None] | None:
    """Id and content size (None: not stated) of the EBML element at the stream's position; None if malformed."""
    first = stream.read(1)
    if not first or first[0] < 0x10:
        return None
    id_length = 9 - first[0].bit_length()
    identity = int.from_bytes(first + stream.read(id_length - 1), "big")
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + stream.read(length - 1), "big")
    return identity, None if value == (1 << (7 * length)) - 1 else value


def _check_ebml(path: Path, stream: BinaryIO, size: int) -> None:
    """Walk a WebM or Matroska file down to the children of its segment: each must end inside the file."""
    end = size
    while stream.tell() < end:
        start = stream.tell()
        element = _ebml_element(stream)
        if element is None:
            if size - start < 12:
                raise _truncated(path, "the next part's header", start + 12, size)
            raise MediaError(f"{path} is damaged: no EBML element at byte {start:,}.")
        identity, length = element
        if identity == _EBML_SEGMENT:
            if length is not None and stream.tell() + length > size:
                raise _truncated(path, "its segment", stream.tell() + length, size)
            continue
        if length is None:
            if identity != _EBML_CLUSTER:
                raise MediaError(f"{path} is damaged: a part at byte {start:,} states no length.")
            return
        if stream.tell() + length > size:
            raise _truncated(path, "a part of it", stream.tell() + length, size)
        stream.seek(length, 1)


def _check_png(path: Path, stream: BinaryIO, size: int) -> None:
    """Walk the chunks of an animated PNG to its end."""
    position, animated = len(_PNG), False
    while True:
        stream.seek(position)
        header = stream.read(8)
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or position + 12 + length > size:
            raise _truncated(path, "its next chunk", position + 12 + length, size)
        animated |= name == b"acTL"
        if name == b"IDAT" and not animated:
            raise _still(path)
        if name == b"IEND":
            return
        position += 12 + length


def _check_gif(path: Path, stream: BinaryIO, size: int) -> None:
    """Walk the blocks of a GIF to its trailer."""
    stream.seek(10)
    flags = stream.read(3)[:1]
    if flags and flags[0] & 0x80:
        stream.seek(3 * 2 ** ((flags[0] & 7) + 1), 1)
    while (marker := stream.read(1)) != b"\x3b":
        if marker == b"\x21":
            stream.seek(1, 1)
        elif marker == b"\x2c":
            stream.seek(8, 1)
            flags = stream.read(1)
            if flags and flags[0] & 0x80:
                stream.seek(3 * 2 ** ((flags[0] & 7) + 1), 1)
            stream.seek(1, 1)
        elif marker:
            raise MediaError(f"{path} is damaged: no GIF block at byte {stream.tell() - 1:,}.")
        while marker and (length := stream.read(1)) != b"\x00":
            if not length:
                break
            stream.seek(length[0], 1)
        if stream.tell() >= size:
            raise _truncated(path, "its last block", stream.tell() + 1, size)
