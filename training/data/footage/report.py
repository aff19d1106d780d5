"""What `vgen data ingest` shows: a page and a picture of every shot, kept or dropped, and why."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vgen.errors import counted
from vgen.io.files import write_bytes, write_text
from vgen.training.data.footage.records import Clip, DataSet, Dropped

_OF_FOLDER = r"(?<=-\d{6})-[0-9a-f]{8}$"  # of an id, see `ingest.decide`
_GAP, _TEXT, _SHEET_ROWS = 2, 15, 24
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;max-width:70em}td{padding:.3em .8em .3em 0;vertical-align:top}"
    "img{display:block;max-width:40em}.no{color:#a33}code{font-size:90%}"
)


def save_thumbnails(folder: Path, clip_id: str, pictures: Sequence[np.ndarray]) -> None:
    """A strip of a shot's frames, thumbnails/ID.jpg."""
    strip = np.concatenate([np.pad(p, ((0, 0), (0, _GAP), (0, 0)), constant_values=255) for p in pictures], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "JPEG", quality=85)
    write_bytes(_thumbnail(folder, clip_id), buffer.getvalue())


def _thumbnail(folder: Path, clip_id: str) -> Path:
    """The file of a shot's thumbnails; a second file of the same name and content has the same ones."""
    return folder / "thumbnails" / f"{re.sub(_OF_FOLDER, '', clip_id)}.jpg"


def write_report(data: DataSet, notes: Sequence[str]) -> bool:
    """report.html and report.png; returns False where nothing has changed.

    Args:
        data: records.
        notes: what reading changed, a sentence each.
    """
    page = _page(data, notes)
    if not write_text(data.folder / "report.html", page):
        return False
    buffer = io.BytesIO()
    _sheet(data).save(buffer, "PNG", optimize=True)
    write_bytes(data.folder / "report.png", buffer.getvalue())
    return True


def _entries(data: DataSet) -> list[Clip | Dropped]:
    return [*data.clips, *data.dropped]


def _page(data: DataSet, notes: Sequence[str]) -> str:
    frames = sum(clip.num_frames for clip in data.clips)
    rows = [_row(data.folder, entry) for entry in _entries(data)]
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f"<!doctype html><meta charset=utf-8><title>Footage</title><style>{_STYLE}</style><h1>Footage</h1>"
        f"<p>{counted(len(data.clips), 'clip')}, {counted(frames, 'frame')}; {len(data.dropped)} dropped.</p>"
        f"<table>{''.join(rows)}</table>{'<h2>Changed on reading</h2><ul>' + said + '</ul>' if said else ''}\n"
    )


def _row(folder: Path, entry: Clip | Dropped) -> str:
    strip = _thumbnail(folder, entry.id)
    picture = f'<img src="thumbnails/{strip.name}" alt="">' if strip.is_file() else ""
    where = f"{html.escape(Path(entry.source).name)}, {counted(entry.num_frames, 'frame')} from {entry.start}"
    if isinstance(entry, Clip):
        top, left, height, width = entry.crop
        what = f"{width} x {height} at ({left}, {top}), {entry.frame_rate:g} frames per second"
        return f"<tr><td>{picture}</td><td><code>{entry.id}</code><br>{where}<br>{what}</td></tr>"
    where = where if entry.id else html.escape(Path(entry.source).name)
    return f"<tr><td>{picture}</td><td class=no>{where}<br>{html.escape(entry.reason)}</td></tr>"


def _sheet(data: DataSet) -> Image.Image:
    """The first rows of the report as one picture."""
    shown = [entry for entry in _entries(data) if _thumbnail(data.folder, entry.id).is_file()]
    strips = [(entry, Image.open(_thumbnail(data.folder, entry.id))) for entry in shown[:_SHEET_ROWS]]
    width = max([strip.width for _, strip in strips], default=200)
    height = sum(strip.height + _TEXT + 4 for _, strip in strips)
    font, top = ImageFont.load_default(11), 0
    texts = [_said(entry) for entry, _ in strips]
    widest = max([width, *(int(font.getlength(text)) + 4 for text in texts)])
    sheet = Image.new("RGB", (widest, max(height, 1)), "white")
    draw = ImageDraw.Draw(sheet)
    for (entry, strip), text in zip(strips, texts, strict=True):
        dropped = isinstance(entry, Dropped)
        draw.text((1, top), text, fill=(160, 40, 40) if dropped else (20, 20, 20), font=font)
        sheet.paste(strip, (0, top + _TEXT))
        top += strip.height + _TEXT + 4
    return sheet


def _said(entry: Clip | Dropped) -> str:
    if isinstance(entry, Dropped):
        return f"{entry.id}: dropped, {entry.reason}"
    return f"{entry.id}: {counted(entry.num_frames, 'frame')}"
