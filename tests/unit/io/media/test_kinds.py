"""One rule for what is read: transparency, interlacing, delays, colours and cuts, in every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.errors import MediaError, counted
from vgen.io.media.codec.probe import probe
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.video import read_video

WIDE, HIGH = 1280, 720


def _encode(
    path: Path,
    frames: list[Any],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """Encode PyAV frames at 8 per second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _half_clear() -> np.ndarray:
    """[32, 48, 4]: left red and opaque, right green and transparent."""
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[:, :24] = (220, 20, 20, 255)
    rgba[:, 24:] = (20, 220, 20, 0)
    return rgba


def _rgba_frames(count: int) -> list[Any]:
    import av

    return [av.VideoFrame.from_ndarray(_half_clear(), format="rgba") for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("b.webm", "libvpx", "yuva420p"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("b.mov", "png", "rgba"),
        ("c.mov", "qtrle", "argb"),
        ("a.mkv", "ffv1", "yuva420p"),
    ],
)
def test_transparent_places_of_videos_show_the_background(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    frames = [frame.reformat(format=pix_fmt) for frame in _rgba_frames(3)]
    options = {"profile": "4444"} if codec == "prores_ks" else {"auto-alt-ref": "0"} if "vpx" in codec else {}
    path = _encode(tmp_path / name, frames, codec, pix_fmt, options)
    found = read_video(path)
    assert found.frames[0, 16, 40].tolist() == pytest.approx([255, 255, 255], abs=2)
    assert found.frames[0, 16, 8].tolist() == pytest.approx([220, 20, 20], abs=14)
    assert "Transparent places show white." in found.notes
    assert probe(path).has_alpha
    assert np.array_equal(np.stack(list(FootageStream(path))), found.frames)
    assert read_video(path, background=(0, 0, 0)).frames[0, 16, 40].tolist() == pytest.approx([0, 0, 0], abs=2)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "gif"), ("a.webp", "webp"), ("a.png", "png")])
def test_animated_pictures(tmp_path: Path, name: str, kind: str) -> None:
    pictures = []
    for left in (0, 8, 16):
        rgba = np.zeros((16, 32, 4), np.uint8)
        rgba[:, left : left + 8] = (250, 0, 0, 255)
        if kind == "webp":  # whose encoder forgets alpha where the changed part is opaque
            rgba[:, [0, -1], 3] = 128
        pictures.append(Image.fromarray(rgba))
    options = {"lossless": True} if kind == "webp" else {"disposal": 2} if kind == "gif" else {"disposal": 1}
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=250, **options)
    found = read_video(tmp_path / name)
    assert (found.frames.shape, found.frame_rate, found.notes) == ((3, 16, 32, 3), 4.0, ())
    for frame, left in zip(found.frames, (0, 8, 16), strict=True):
        assert frame[8, left + 4].tolist() == pytest.approx([250, 0, 0], abs=6)
        assert frame[8, 28].tolist() == [255, 255, 255]
    info = probe(tmp_path / name)
    assert (info.container, info.num_frames, info.height, info.width) == (kind, 3, 16, 32)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(MediaError, match=r"is (truncated|damaged)"):
        read_video(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_a_still_picture_is_no_video(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(MediaError, match="is a still picture"):
        read_video(tmp_path / name)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
@pytest.mark.parametrize(("delay", "rate"), [(0, 10.0), (10, 10.0), (20, 50.0), (100, 10.0)])
def test_delays_are_those_of_browsers(tmp_path: Path, name: str, delay: int, rate: float) -> None:
    pictures = [Image.new("RGB", (16, 16), (60 * k, 0, 0)) for k in range(4)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=delay)
    found = read_video(tmp_path / name)
    assert found.frame_rate == pytest.approx(rate)
    assert found.notes == (("Delays of 10 ms or less last 100 ms, as in browsers.",) if delay <= 10 else ())


def test_interlaced_frames_are_deinterlaced_and_said(tmp_path: Path) -> None:
    import av

    frames = []
    for index in range(9):
        woven = np.full((64, 128, 3), 16, np.uint8)
        woven[0::2, 8 * index : 8 * index + 24] = 230  # the upper field
        woven[1::2, 8 * index + 4 : 8 * index + 28] = 230  # the lower one, half a frame later
        frames.append(av.VideoFrame.from_ndarray(woven, format="rgb24"))
    options = {"x264-params": "tff=1:interlaced=1", "crf": "4", "flags": "+ildct+ilme"}
    path = _encode(tmp_path / "a.mp4", frames, options=options)
    found = read_video(path)
    assert found.frames.shape == (9, 64, 128, 3)
    assert found.frame_rate == 8.0
    assert found.notes == ("The frames are interlaced; they were deinterlaced (bwdif).",)
    combed = np.abs(np.diff(found.frames[2:7, 8:56, :, 0].astype(int), axis=1)).max()
    assert combed < 60, "edges of neighbouring rows lie at the same place"
    assert np.array_equal(np.stack(list(FootageStream(path))), found.frames)


def test_progressive_frames_are_left_alone(tmp_path: Path, clip: np.ndarray, encode_raw: Callable[..., Path]) -> None:
    assert read_video(encode_raw(tmp_path / "a.mp4", clip)).notes == ()


def _flat(height: int, width: int, luma: int, blue: int, red: int, pix_fmt: str = "yuv420p") -> Any:
    import av

    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, value in zip(frame.planes, (luma, blue, red), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


RED_709, RED_601, RED_709_FULL = (63, 102, 240), (81, 90, 240), (54, 99, 255)


@pytest.mark.parametrize(
    ("size", "values", "tags", "said"),
    [
        ((HIGH, WIDE), RED_709, {}, "BT.709 (assumed, as HD that states none), limited range"),
        ((480, 704), RED_601, {}, "BT.601 (assumed, as SD that states none), limited range"),
        ((HIGH, WIDE), RED_601, {"colorspace": 6}, "BT.601, limited range"),
        ((480, 704), RED_709, {"colorspace": 1}, "BT.709, limited range"),
        ((480, 704), RED_709_FULL, {"colorspace": 1, "color_range": 2}, "BT.709, full range"),
    ],
    ids=["untagged HD", "untagged SD", "HD tagged 601", "SD tagged 709", "full range"],
)
def test_matrix_and_range(
    tmp_path: Path, size: tuple[int, int], values: tuple[int, int, int], tags: dict, said: str
) -> None:
    path = _encode(tmp_path / "a.mp4", [_flat(*size, *values) for _ in range(2)], options={"crf": "1"}, **tags)
    assert read_video(path).frames[0, 10, 10].tolist() == pytest.approx([254, 0, 0], abs=3)
    assert probe(path).colours == said


def test_bt2020_matrix_is_refused(tmp_path: Path, clip: np.ndarray, encode_raw: Callable[..., Path]) -> None:
    path = encode_raw(tmp_path / "a.mp4", clip, context={"colorspace": 9})
    with pytest.raises(MediaError, match=r"wide gamut \(BT\.2020"):
        read_video(path)


def _cut(source: Path, target: Path, count: int, **options: str) -> int:
    """Packets from the second key frame on, as `ffmpeg -ss -c copy` cuts; returns how many there are."""
    import av

    with av.open(str(source)) as opened, av.open(str(target), "w", options=options) as written:
        packets = [packet for packet in opened.demux(video=0) if packet.size]
        first = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
        stream = written.add_stream_from_template(opened.streams.video[0])
        start = packets[first].dts
        kept = packets[first : first + count]
        for packet in kept:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            written.mux(packet)
        return len(kept)


def _open_groups(path: Path, codec: str, parameters: str, pictures: np.ndarray) -> Path:
    import av

    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    key = "x265-params" if codec == "libx265" else "x264-params"
    return _encode(path, frames, codec, options={key: f"open-gop=1:keyint=8:{parameters}", "crf": "10"})


def _greys() -> np.ndarray:
    return np.stack([np.full((64, 64, 3), 5 * k, np.uint8) for k in range(30)])


def _moving() -> np.ndarray:
    base = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return np.stack([np.roll(base, 3 * k, axis=1) for k in range(40)])


def test_a_cut_at_a_recovery_point(tmp_path: Path) -> None:
    """H.264 that speaks of pictures before the cut, and needs none of them: every frame is there."""
    whole = read_video(_open_groups(tmp_path / "whole.mp4", "libx264", "bframes=2", _greys()))
    path = tmp_path / "cut.mp4"
    count = _cut(tmp_path / "whole.mp4", path, 12)
    found = read_video(path)
    assert count == len(found.frames) == 12
    first = round(float(found.frames[0].mean()) / 5)
    assert np.abs(found.frames[:8].astype(int) - whole.frames[first : first + 8]).max() <= 1


@pytest.mark.parametrize(
    ("codec", "parameters"), [("libx264", "bframes=3:b-adapt=0"), ("libx265", "bframes=3:b-adapt=0:log-level=none")]
)
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_pictures_that_need_what_was_cut_off_are_left_out(
    tmp_path: Path, codec: str, parameters: str, name: str
) -> None:
    whole = read_video(_open_groups(tmp_path / "whole.mp4", codec, parameters, _moving()))
    count = _cut(tmp_path / "whole.mp4", tmp_path / name, 100, **({"use_editlist": "0"} if "mp4" in name else {}))
    found = read_video(tmp_path / name)
    assert 0 < count - len(found.frames) <= 7
    said = f"{counted(count - len(found.frames), 'frame')} at the start left out: what they need was cut off."
    assert found.notes == (said,)
    assert np.abs(found.frames.astype(int) - whole.frames[-len(found.frames) :]).max() <= 1


def test_damage_after_a_cut_is_refused(tmp_path: Path) -> None:
    _open_groups(tmp_path / "whole.mp4", "libx264", "bframes=2", _moving())
    _cut(tmp_path / "whole.mp4", tmp_path / "cut.mp4", 24)
    assert len(read_video(tmp_path / "cut.mp4").frames) > 16
    content, rng = (tmp_path / "cut.mp4").read_bytes(), np.random.default_rng(0)
    start, end = content.find(b"mdat") + 4, content.find(b"moov")
    refused = 0
    for share in np.linspace(0.05, 0.95, 19):
        damaged = bytearray(content)
        place = start + int(share * (end - start))
        damaged[place : place + 60] = rng.integers(0, 255, 60, dtype=np.uint8).tobytes()
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        try:
            read_video(tmp_path / "damaged.mp4")
        except MediaError as error:
            refused += "is damaged" in str(error)
    assert refused >= 12, "some damage gives another valid stream; most of it does not"


def test_memory_is_that_of_the_fitted_pictures(
    tmp_path: Path, clip: np.ndarray, encode_raw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode_raw(tmp_path / "a.mp4", clip)
    monkeypatch.setattr("vgen.io.media.limits.MAX_DECODED_BYTES", 20_000)
    with pytest.raises(MediaError, match="at most 4 frames of this size"):
        read_video(path)
    found = read_video(path, fit=lambda picture: picture[::4, ::4])
    assert (found.frames.shape, found.size) == ((9, 8, 12, 3), (32, 48))


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a/"])
def test_how_many_frames_a_file_has_is_known_of_a_part(tmp_path: Path, clip: np.ndarray, name: str) -> None:
    from vgen.io.media.video import write_video

    path = write_video(f"{tmp_path}/{name}", clip, 8.0)
    part = read_video(path, max_frames=4)
    assert (len(part.frames), part.num_in_file) == (4, 9)
    assert read_video(path).num_in_file == 9
