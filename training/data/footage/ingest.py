"""From a folder of footage to a data set: every file is scanned once, every shot is kept or dropped for a reason."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from vgen.errors import OutputError, RequestError, VgenError, counted
from vgen.io.content_hash import content_hash
from vgen.io.files import check_writable, write_json, write_text
from vgen.io.media.animation import is_animated
from vgen.training.data.footage.files import IMAGES, VIDEOS, find_footage
from vgen.training.data.footage.records import (
    ABOUT,
    CLIPS,
    DROPPED,
    Clip,
    DataSet,
    Dropped,
    about_footage,
    content_key,
    write_rows,
)
from vgen.training.data.footage.report import save_thumbnails, write_report
from vgen.training.data.footage.scan import (
    SCAN_VERSION,
    Scan,
    Shot,
    check_detector,
    decode_print,
    scan_image,
    scan_video,
)


@dataclass(frozen=True)
class IngestSettings:
    """Which shots are kept.

    Attributes:
        cut_threshold: of PySceneDetect's AdaptiveDetector; 0 cuts nothing.
        min_frames: fewer are too short (pictures are exempt).
        static_below: a shot whose blocks never change by more grey levels than this is a still picture.
        black_below: a shot whose 95th percentile of grey stays under this is black.
        duplicate_below: two shots are the same if their small pictures differ by less than this share of the contrast.
        crop_bars: cut black bars off.
    """

    cut_threshold: float = 3.0
    min_frames: int = 9
    static_below: float = 3.0
    black_below: float = 24.0
    duplicate_below: float = 0.12
    crop_bars: bool = True


WHOLE = IngestSettings(0.0, 1, 0.0, 0.0, 0.0, False)
"""Keeps everything but black ends: for a video that was chosen by hand."""


@dataclass(frozen=True)
class Ingested:
    """The data set, the files of footage that could not be used, the number of used and the kinds of other files, and
    whether anything was written."""

    data: DataSet
    failed: tuple[Dropped, ...]
    used: int
    others: Mapping[str, int]
    changed: bool


@dataclass(frozen=True)
class _Found:
    path: Path
    hash: str
    folder: str
    scan: Scan


def ingest(footage: Path, folder: Path, settings: IngestSettings, on_line: Callable[[str], None]) -> Ingested:
    """Scan new files, decide which shots are kept, and write the records and the report.

    Args:
        footage: a folder, or one file.
        folder: of the data set; made if missing. A file that was scanned before is not decoded again.
        settings: which shots are kept.
        on_line: called with a line of progress.
    Raises:
        RequestError: no footage.
        OutputError: `folder` is something else, or cannot be written.
        VgenError: a package that is needed is not installed.
    """
    met = find_footage(footage, folder)
    root = met.root
    if not met.files:
        raise RequestError(f"{footage} has no videos or pictures ({', '.join(sorted(VIDEOS | IMAGES))}).")
    if not all(_is_still(path) for path in met.files):
        check_detector(settings.cut_threshold)
    _prepare(folder)
    changed, found, skipped = False, [], list(met.skipped)
    for entry in skipped:
        on_line(f"skipped: {entry.reason}")
    for path in met.files:
        try:
            scanned, fresh = _scan_once(path, root, folder, settings, on_line)
        except OutputError:
            raise
        except VgenError as error:
            if error.exit_code != 2:
                raise
            skipped.append(Dropped(str(path), str(error)))
            on_line(f"skipped: {error}")
        else:
            found.append(scanned)
            changed |= fresh
    clips, dropped = decide(found, settings)
    about = about_footage(root, folder, settings)
    data = DataSet(folder, about, tuple(clips), (*skipped, *dropped))
    changed |= write_json(folder / ABOUT, about)
    changed |= write_rows(folder / CLIPS, data.clips, root)
    changed |= write_rows(folder / DROPPED, data.dropped, root)
    changed |= write_report(data, [f"{entry.path}: {note}" for entry in found for note in entry.scan.notes])
    return Ingested(data, tuple(skipped), len(found), met.others, changed)


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the data set.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file() and not (folder / "scans").is_dir():
        raise OutputError(f"{folder} is not empty and is not a data set; give a new folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}.") from None
    check_writable(folder)


def _scan_once(
    path: Path, root: Path, folder: Path, settings: IngestSettings, on_line: Callable[[str], None]
) -> tuple[_Found, bool]:
    """A file's scan, from the data set if it is there; and whether it was made now."""
    try:
        digest = content_hash(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from None
    place = folder / "scans" / f"{content_key(digest, settings.cut_threshold, SCAN_VERSION, path.name)}.json"
    inside = path.relative_to(root).parent.as_posix()
    with contextlib.suppress(OSError, ValueError):  # not scanned yet, or damaged
        return _Found(path, digest, inside, TypeAdapter(Scan).validate_json(place.read_bytes())), False
    on_line(f"scanning {path}")
    scan, thumbnails = scan_image(path) if _is_still(path) else scan_video(path, settings.cut_threshold)
    for shot, pictures in zip(scan.shots, thumbnails, strict=True):
        save_thumbnails(folder, clip_id(path, digest, shot), pictures)
    write_text(place, json.dumps(asdict(scan)) + "\n")  # last: what it speaks of is there
    return _Found(path, digest, inside, scan), True


def _is_still(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not is_animated(path)


def clip_id(path: Path, digest: str, shot: Shot) -> str:
    """A name for a shot that is the same on every run: file name, content, first frame."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:40].strip("-") or "clip"
    return f"{stem}-{digest[:8]}-{shot.start:06d}"


def _free_name(entry: _Found, shot: Shot, taken: set[str]) -> str:
    """A shot's name, and behind it its folder where a file of the same name and content has that name already."""
    name = clip_id(entry.path, entry.hash, shot)
    if name in taken:
        name = f"{name}-{content_key(entry.folder, entry.path.name)[:8]}"
    taken.add(name)
    return name


def decide(found: list[_Found], settings: IngestSettings) -> tuple[list[Clip], list[Dropped]]:
    """Which shots are kept; of two that are the same the first."""
    clips: list[Clip] = []
    dropped: list[Dropped] = []
    prints: list[np.ndarray] = []
    taken: set[str] = set()
    for entry, shot in ((file, shot) for file in found for shot in file.scan.shots):
        scan, look = entry.scan, decode_print(shot.print)
        crop = shot.crop if settings.crop_bars else (0, 0, *scan.size)
        clip = Clip(
            _free_name(entry, shot, taken), str(entry.path), entry.hash, scan.kind, shot.start, shot.num_frames,
            scan.frame_rate, crop, entry.folder, scan.resampled,
        )  # fmt: skip
        reason = _fault(scan, shot, settings)
        twin = None if reason else _twin(look, prints, settings.duplicate_below)
        if twin is not None:
            reason = f"duplicate of {clips[twin].id}"
        if reason is not None:
            dropped.append(clip.dropped(reason))
        else:
            prints.append(look)
            clips.append(clip)
    return clips, dropped


def _fault(scan: Scan, shot: Shot, settings: IngestSettings) -> str | None:
    if shot.brightness < settings.black_below:
        return f"black: grey {shot.brightness:g} of 255 at the 95th percentile, below {settings.black_below:g}"
    if scan.kind == "image":
        return None
    if shot.num_frames < settings.min_frames:
        return f"too short: {counted(shot.num_frames, 'frame')}, fewer than {settings.min_frames}"
    if shot.motion < settings.static_below:
        return f"static: nothing changes by more than {shot.motion:g} grey levels, below {settings.static_below:g}"
    return None


def _twin(look: np.ndarray, others: list[np.ndarray], below: float) -> int | None:
    """Index of the first other that shows the same, however it was encoded."""
    if not others:
        return None
    table = np.stack(others)
    contrast = 0.5 * (look.std() + table.std(axis=1)) + 1.0
    distance = np.sqrt(np.square(table - look).mean(axis=1)) / contrast
    same = np.flatnonzero(distance < below)
    return int(same[0]) if len(same) else None
