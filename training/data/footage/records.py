"""What is known of a folder of footage, on disk: one JSON object a line, replaced whole or not at all.

A data set is a folder with
    dataset.json       where the footage lies, also as seen from here, and the settings of `vgen data ingest`
    scans/HASH.json    what going through one file found, by the file's content
    clips.jsonl        a kept clip a line
    dropped.jsonl      a dropped shot or skipped file a line, with its reason
    refused.jsonl      a clip a line that `vgen data filter` refused, with its reason
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

from vgen.errors import RequestError
from vgen.io.files import write_text

CLIPS, DROPPED, REFUSED, ABOUT = "clips.jsonl", "dropped.jsonl", "refused.jsonl", "dataset.json"
VERSION = 1


@dataclass(frozen=True)
class Clip:
    """A stretch of a file that is trained on.

    Attributes:
        id: names the clip in every file of the data set.
        source: the file, by the name that was found; in clips.jsonl below the footage's folder.
        source_hash: sha256 of the file, hexadecimal.
        kind: "video" or "image".
        start: first frame, counted in the file's own (resampled, if its rate varies) frames.
        num_frames: exact.
        frame_rate: frames per second; 1 for an image.
        crop: (top, left, height, width) of the picture without black bars, upright pixels.
        folder: of the source under the footage's folder, "." at its top; weights go by it.
        resampled: the file's frame rate varies.
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
    """The records of a data set's folder.

    Attributes:
        folder: the data set's.
        about: dataset.json.
        clips: kept, in the order of the footage.
        dropped: the rest.
    """

    folder: Path
    about: Mapping[str, Any]
    clips: tuple[Clip, ...]
    dropped: tuple[Dropped, ...] = field(default=())

    @classmethod
    def open(cls, folder: str | os.PathLike[str], refused: bool = False) -> DataSet:
        """Read the records.

        Args:
            folder: the data set's.
            refused: keep the clips that `vgen data filter` refused; else they are among the dropped.
        Raises:
            RequestError: no data set, or one that cannot be read.
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
                f"{root} is no data set: it has no {ABOUT} and {CLIPS}. Make one with `vgen data ingest FOOTAGE "
                f"-o {root}`."
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{root} cannot be read as a data set: {error}; ingest the footage again.") from None
        return cls(root, {**about, "footage": str(footage)}, clips, dropped)

    def captions(self, clip: Clip) -> tuple[str, ...]:
        """The captions of a clip; empty if it has none yet."""
        try:
            text = self.caption_file(clip).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{self.caption_file(clip)} cannot be read as UTF-8 text: {error}.") from None
        return tuple(line.strip() for line in text.split("\n") if line.strip())

    def caption_file(self, clip: Clip) -> Path:
        """Where the captions of a clip lie."""
        return self.folder / "captions" / f"{clip.id}.txt"


def about_footage(footage: Path, folder: Path, settings: Any) -> dict[str, Any]:
    """What dataset.json says.

    Args:
        footage: the folder of the footage.
        folder: of the data set.
        settings: a dataclass.
    """
    seen = os.path.relpath(os.path.realpath(footage), os.path.realpath(folder))
    return {"version": VERSION, "footage": str(footage), "seen_from_here": seen, "settings": asdict(settings)}


def _placed(row: dict[str, Any], footage: Path) -> dict[str, Any]:
    return {**row, "source": str(footage / row["source"])}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of records, as they stand there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _footage_root(folder: Path, about: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Where the footage lies now: where it did as seen from the data set, if the two were moved or copied together."""
    # Records of earlier versions name whole paths, which stay what they are below any folder.
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
