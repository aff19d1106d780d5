"""The records of a data set of footage: one JSON object per line, each file replaced whole or not at all.

A data set is a folder with
    dataset.json       the folder of the footage, absolute and relative to here, and the settings of `vgen data ingest`
    scans/HASH.json    the scan of one file, by the file's content
    clips.jsonl        the clips that are kept
    dropped.jsonl      dropped shots and skipped files, with the reasons
    refused.jsonl      clips that `vgen data filter` refused, with the reasons
    captions/ID.txt    captions of a clip, one per line; may be edited
    thumbnails/ID.jpg  and report.html, report.png
    cache/KEY/         what `vgen data cache` made for one model
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vgen.errors import RequestError, counted
from vgen.io.files import write_text

CLIPS, DROPPED, REFUSED, ABOUT = "clips.jsonl", "dropped.jsonl", "refused.jsonl", "dataset.json"
VERSION = 1


@dataclass(frozen=True)
class Clip:
    """A part of a file that is trained on.

    Attributes:
        id: names the clip in every file of the data set.
        source, source_hash: the file, in clips.jsonl relative to the footage's folder, and its SHA-256.
        kind: "video" or "image".
        start, num_frames: in the file's own frames, or those that it is resampled to if its rate varies (`resampled`).
        frame_rate: frames per second; 1 for an image.
        crop: (top, left, height, width) of the picture without black bars, upright pixels.
        folder: of the source under the footage's folder, "." at its top; weights go by it.
    """

    id: str
    source: str
    source_hash: str
    kind: str
    start: int
    num_frames: int
    frame_rate: float
    crop: tuple[int, int, int, int]
    folder: str = "."
    resampled: bool = False

    def dropped(self, reason: str) -> Dropped:
        """The record that this clip is not trained on."""
        return Dropped(self.source, reason, self.id, self.start, self.num_frames)


@dataclass(frozen=True)
class Dropped:
    """What is not trained on, and why; `id` is empty where a whole file was skipped."""

    source: str
    reason: str
    id: str = ""
    start: int = 0
    num_frames: int = 0


@dataclass(frozen=True)
class DataSet:
    """The records in a data set's folder: dataset.json, and the kept and the dropped clips in the footage's order."""

    folder: Path
    about: Mapping[str, Any]
    clips: tuple[Clip, ...]
    dropped: tuple[Dropped, ...] = field(default=())

    @classmethod
    def open(cls, folder: str | os.PathLike[str], refused: bool = False) -> DataSet:
        """Read the records; clips that `vgen data filter` refused are among the dropped unless `refused` is set.

        Raises:
            RequestError: not a data set, or one that cannot be read.
        """
        root = Path(folder)
        try:
            about, rows = json.loads((root / ABOUT).read_text(encoding="utf-8")), read_rows(root / CLIPS)
            footage = _footage_root(root, about, rows)
            clips = tuple(Clip(**_placed({**row, "crop": tuple(row["crop"])}, footage)) for row in rows)
            dropped = tuple(Dropped(**_placed(row, footage)) for row in read_rows(root / DROPPED))
            if not refused and (root / REFUSED).is_file():
                out = {row["id"]: Dropped(**_placed(row, footage)) for row in read_rows(root / REFUSED)}
                dropped += tuple(out[clip.id] for clip in clips if clip.id in out)
                clips = tuple(clip for clip in clips if clip.id not in out)
        except FileNotFoundError:
            raise RequestError(
                f"{root} is not a data set: it has no {ABOUT} and {CLIPS}. Make one with `vgen data ingest FOOTAGE "
                f"-o {root}`."
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{root} cannot be read as a data set: {error}; ingest the footage again.") from None
        return cls(root, {**about, "footage": str(footage)}, clips, dropped)

    def captions(self, clip: Clip) -> tuple[str, ...]:
        """The captions of a clip; empty if it has none yet."""
        return read_texts(self.caption_file(clip))

    def all_captions(self) -> dict[str, tuple[str, ...]]:
        """The captions of every clip, by id.

        Raises:
            RequestError: a clip has none.
        """
        captions = {clip.id: self.captions(clip) for clip in self.clips}
        empty = [name for name, texts in captions.items() if not texts]
        if empty:
            raise RequestError(
                f"{counted(len(empty), 'clip')} without a caption, the first is {empty[0]}: run `vgen data caption "
                f"{self.folder} --from sidecar|text|trigger|model` first, or write them into {self.folder}/captions, "
                "one text file per clip, one caption per line."
            )
        return captions

    def caption_file(self, clip: Clip) -> Path:
        """The text file of a clip's captions."""
        return self.folder / "captions" / f"{clip.id}.txt"


def read_texts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, without blank ones; none where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    return tuple(line.strip() for line in lines if line.strip())


def about_footage(footage: Path, folder: Path, settings: Any) -> dict[str, Any]:
    """The content of dataset.json, for a data set in `folder` made with `settings` (a dataclass)."""
    seen = os.path.relpath(os.path.realpath(footage), os.path.realpath(folder))
    return {"version": VERSION, "footage": str(footage), "seen_from_here": seen, "settings": asdict(settings)}


def _placed(row: dict[str, Any], footage: Path) -> dict[str, Any]:
    return {**row, "source": str(footage / row["source"])}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of records, unchanged."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _footage_root(folder: Path, about: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    """The footage's folder: relative to the data set, if both were moved together, else the recorded absolute one."""
    near = Path(os.path.normpath(folder.resolve() / about.get("seen_from_here", "")))
    return near if any(os.path.lexists(near / row["source"]) for row in rows) else Path(about["footage"])


def write_rows(path: Path, rows: Iterable[Clip | Dropped], footage: Path) -> bool:
    """Write records, one per line, sources as seen from the footage; returns False where the file holds that already.

    Every character that is not ASCII is escaped: a name may hold what ends a line, or bytes that are not UTF-8.
    """
    stored = ({**asdict(row), "source": os.path.relpath(row.source, footage)} for row in rows)
    return write_text(path, "".join(json.dumps(row) + "\n" for row in stored))


def content_key(*parts: Any) -> str:
    """16 hexadecimal digits that change with any of the parts (anything JSON can say)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
