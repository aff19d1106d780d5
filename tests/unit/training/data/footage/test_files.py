"""Every file of a folder is footage, belongs to footage, is skipped for a reason, or is something else; links count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgen.errors import MediaError
from vgen.io.media.video import write_video
from vgen.training.data.footage.captions import caption as give_captions
from vgen.training.data.footage.captions import same_text, sidecar
from vgen.training.data.footage.files import find_footage, mask_of
from vgen.training.data.footage.ingest import WHOLE, Ingested, ingest
from vgen.training.data.footage.records import DataSet


def _ingest(footage: Path, folder: Path) -> Ingested:
    return ingest(footage, folder, WHOLE, lambda text: None)


def _picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(30, 255, (32, 32, 3), np.uint8)).save(path)
    return path


def _names(made: Ingested, root: Path) -> list[str]:
    return [str(Path(clip.source).relative_to(root)) for clip in made.data.clips]


def test_every_file_is_counted_as_one_kind(tmp_path: Path) -> None:
    root = tmp_path / "in"
    _picture(root / "a.png")
    _picture(root / "a.mask.jpg")
    _picture(root / "lost.mask.png")
    (root / "a.mask.npy").write_bytes(b"0")
    (root / "a.txt").write_text("a picture")
    (root / "notes.txt").write_text("no caption")
    (root / "old.wmv").write_bytes(b"0")
    (root / "README").write_text("me")
    (root / "._a.png").write_bytes(b"0")
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (root / "empty.png").touch()
    said: list[str] = []
    made = ingest(root, tmp_path / "ds", WHOLE, said.append)
    assert (_names(made, root), made.used) == (["a.png"], 1)
    reasons = {Path(entry.source).name: entry.reason for entry in made.failed}
    assert set(reasons) == {"lost.mask.png", "a.mask.npy", "gone.mp4", "empty.png"}
    assert "is a mask without footage: lost is not next to it" in reasons["lost.mask.png"]
    assert "use a picture or a video (.avi" in reasons["a.mask.npy"]
    assert "a link to nothing" in reasons["gone.mp4"] and "0 bytes" in reasons["empty.png"]
    assert all(f"skipped: {reason}" in said for reason in reasons.values())
    expected = {".txt": 1, ".wmv": 1, "without an ending": 1, "hidden": 1, "caption file": 1, "mask": 1}
    assert made.others == expected
    met = made.used + len(made.failed) + sum(made.others.values())
    assert met == len([path for path in root.rglob("*") if not path.is_dir()])


def test_links_are_followed_and_companions_lie_next_to_the_name_that_was_found(tmp_path: Path) -> None:
    root, store = tmp_path / "in", tmp_path / "store"
    blob = _picture(store / "3f2a.png")
    _picture(store / "folder" / "b.png", 1)
    _picture(store / "folder" / "b.mask.png", 2)
    (store / "3f2a.txt").write_text("beside the target")
    root.mkdir()
    (root / "a.png").symlink_to(blob)
    (root / "a.txt").write_text("beside the name")
    _picture(root / "a.mask.png", 3)
    (root / "more").symlink_to(store / "folder")
    (store / "folder" / "circle").symlink_to(root)
    made = _ingest(root, tmp_path / "ds")
    assert _names(made, root) == ["a.png", "more/b.png"]
    first, second = made.data.clips
    assert sidecar(first) == ["beside the name"] and second.folder == "more"
    assert mask_of(Path(first.source)) == root / "a.mask.png"
    assert mask_of(Path(second.source)) == root / "more" / "b.mask.png"
    assert DataSet.open(tmp_path / "ds").clips == made.data.clips


def test_what_is_written_is_never_taken_as_footage(tmp_path: Path) -> None:
    root = tmp_path / "in"
    _picture(root / "a.png")
    inside = _ingest(root, root / "ds")
    again = _ingest(root, root / "ds")
    assert _names(again, root) == ["a.png"] and not again.changed
    assert inside.others == {} and again.others["of a data set"] >= 6
    other = _ingest(root, tmp_path / "other")
    assert _names(other, root) == ["a.png"], "neither is another data set that lies inside"
    for name in ("dataset.json", "clips.jsonl"):
        (root / "ds" / name).unlink()  # as an interrupt leaves it
    assert _names(_ingest(root, root / "ds"), root) == ["a.png"]
    (tmp_path / "link").symlink_to(root / "ds")
    assert _names(_ingest(root, tmp_path / "link"), root) == ["a.png"]


def test_the_same_file_twice_keeps_both_captions(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for folder in ("b", "a", "."):
        _picture(root / folder / "same.png")
    made = _ingest(root, tmp_path / "ds")
    names = [clip.id for clip in made.data.clips]
    assert len(set(names)) == 3 and [clip.folder for clip in made.data.clips] == ["a", "b", "."]
    page = (tmp_path / "ds" / "report.html").read_text()
    assert all(name in page for name in names) and page.count('<img src="thumbnails/') == 3
    texts = {clip.id: f"caption of {clip.folder}" for clip in made.data.clips}
    give_captions(made.data, lambda clip: [texts[clip.id]], lambda text: None)
    assert {clip.id: made.data.captions(clip) for clip in made.data.clips} == {name: (texts[name],) for name in names}
    assert [clip.id for clip in _ingest(root, tmp_path / "ds").data.clips] == names


@pytest.mark.parametrize(
    "name", ["a\u0085b", "a\u2028b", "a\x0cb", "näme", "a\nb", b"a\xffb".decode("utf-8", "surrogateescape")]
)
def test_any_name_survives(tmp_path: Path, name: str) -> None:
    root = tmp_path / "in"
    _picture(root / f"folder {name}" / f"{name}.png")
    (root / f"folder {name}" / f"{name}.txt").write_text("first\u2028line\nsecond\n")
    made = _ingest(root, tmp_path / "ds")
    opened = DataSet.open(tmp_path / "ds")
    assert opened.clips == made.data.clips and len(opened.clips) == 1
    assert sidecar(opened.clips[0]) == ["first\u2028line", "second"]
    give_captions(opened, same_text("one\u0085text"), lambda text: None)
    assert len(opened.captions(opened.clips[0])) == 1
    assert not _ingest(root, tmp_path / "ds").changed


def test_records_of_an_earlier_version_name_whole_paths(tmp_path: Path) -> None:
    root = tmp_path / "in"
    _picture(root / "a\u2028b.png")
    made = _ingest(root, tmp_path / "ds")
    for name in ("clips.jsonl", "dataset.json"):
        file = tmp_path / "ds" / name
        content = json.loads(file.read_text())
        content.pop("seen_from_here", None)
        if "source" in content:
            content["source"] = str(root / content["source"])
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert DataSet.open(tmp_path / "ds").clips == made.data.clips
    shutil.move(tmp_path / "ds", tmp_path / "moved")
    assert DataSet.open(tmp_path / "moved").clips == made.data.clips


def test_a_data_set_that_was_copied_with_its_footage_reads_the_copy(tmp_path: Path) -> None:
    _picture(tmp_path / "one" / "in" / "a.png")
    _ingest(tmp_path / "one" / "in", tmp_path / "one" / "ds")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert DataSet.open(tmp_path / "two" / "ds").clips[0].source == str(tmp_path / "two" / "in" / "a.png")
    shutil.copytree(tmp_path / "one" / "ds", tmp_path / "alone" / "deep" / "ds")
    alone = DataSet.open(tmp_path / "alone" / "deep" / "ds")
    assert alone.clips[0].source == str(tmp_path / "one" / "in" / "a.png")


def test_two_masks_of_one_clip_are_refused(tmp_path: Path) -> None:
    source = _picture(tmp_path / "a.png")
    assert mask_of(source) is None
    _picture(tmp_path / "a.mask.PNG")
    assert mask_of(source) == tmp_path / "a.mask.PNG"
    write_video(tmp_path / "a.mask.mp4", np.full((3, 32, 32, 3), 255, np.uint8), 8.0)
    with pytest.raises(MediaError, match=r"several masks: a\.mask\.PNG, a\.mask\.mp4; keep one"):
        mask_of(source)


def test_a_file_alone_is_footage_whatever_lies_next_to_it(tmp_path: Path) -> None:
    _picture(tmp_path / "in" / "a.png")
    _picture(tmp_path / "in" / "b.png", 1)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "b.png")
    met = find_footage(tmp_path / "in" / "link.png", tmp_path / "ds")
    assert met.files == (tmp_path / "in" / "link.png",) and met.root == tmp_path / "in"
