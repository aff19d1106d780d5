"""Files that are broken, foreign or dangerous: an error that names file and cause."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vgen.errors import MediaError
from vgen.io.media import limits
from vgen.io.media.video import probe, read_video, write_video

NAMES = ("clip.mp4", "clip.webm", "clip.gif")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, clip: np.ndarray, name: str, share: float) -> None:
    path = write_video(tmp_path / name, clip, 8.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MediaError, match=name):
        read_video(path)


@pytest.mark.parametrize("where", ["front", "end"])
def test_truncated_wherever_the_index_lies(
    tmp_path: Path, make_clip: Callable[..., np.ndarray], encode_raw: Callable[..., Path], where: str
) -> None:
    """Our own files have their index in front, most others at the end."""
    frames = make_clip(17)
    path = tmp_path / "clip.mp4"
    if where == "front":
        write_video(path, frames, 8.0)
    else:
        encode_raw(path, frames)
    content = path.read_bytes()
    assert (content.find(b"moov") < content.find(b"mdat")) == (where == "front")
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(MediaError, match="truncated"):
            read_video(path)


def test_flipped_bytes_are_not_painted_over(tmp_path: Path, make_clip: Callable[..., np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.mp4", noise, 8.0)
    content = bytearray(path.read_bytes())
    start = content.find(b"mdat") + 4
    for position in np.random.default_rng(1).integers(start + 2000, len(content), 40):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"clip\.mp4 is damaged"):
        read_video(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.touch()
    for read in (read_video, probe):
        with pytest.raises(MediaError, match=r"clip\.mp4 is empty \(0 bytes\)"):
            read(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"This is no video at all, only words.\n" * 20, "looks like text"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/a.ts\n", "playlist"),
        (b"\xef\xbb\xbf#EXTM3U\nfile:///etc/passwd\n", "playlist"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "playlist"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "playlist"),
        (b"\x00\x01\x02\x03" * 100, "no known kind"),
        (b"\x00\x00\x00\x18ftypisom" + b"\x00" * 12, "no index"),
        (b"\x1a\x45\xdf\xa3\x84\x00\x00\x00\x00", "webm"),
        (b"GIF89a", "GIF|gif|truncated"),
    ],
)
def test_foreign_content_under_a_video_name(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=f"clip.mp4.*({cause})"):
        read_video(path)


def test_addresses_open_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}/a.mp4", f"tcp://127.0.0.1:{port}", "concat:a.mp4|b.mp4", "rtsp:x"):
            with pytest.raises(MediaError, match="is not a local file"):
                read_video(address)
        with pytest.raises(TimeoutError):
            server.accept()


def test_names_that_look_like_addresses_are_files_if_they_are_there(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("concat:a.mp4", clip, 8.0)
    assert read_video("concat:a.mp4").frames.shape == clip.shape


@pytest.mark.parametrize("name", ["missing.mp4", "no/such/folder/clip.mp4", "x" * 5000, "nul\0.mp4"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError):
        read_video(f"{tmp_path}/{name}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match="neither a file nor a folder"):
        read_video(tmp_path / "clip.mp4")


def test_audio_only(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video: it holds only audio"):
        read_video(path)


def test_sound_beside_the_picture_is_left_aside(tmp_path: Path, clip: np.ndarray) -> None:
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        sound, picture = container.add_stream("aac", rate=16000), container.add_stream("libx264", rate=8)
        sound.layout = "mono"
        picture.height, picture.width, picture.pix_fmt = 32, 48, "yuv420p"
        for pixels in clip:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode())
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert read_video(path).frames.shape == clip.shape


def test_a_video_without_frames(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(MediaError, match=r"clip\.webm.*(single frame|no frames)"):
        read_video(path)


@pytest.mark.parametrize("name", [*NAMES, "clip/"])
def test_the_frame_cap(tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write_video(f"{tmp_path}/{name}", clip, 8.0)
    monkeypatch.setattr(limits, "MAX_FRAMES", 5)
    with pytest.raises(MediaError, match="5 frames"):
        read_video(path)
    assert len(read_video(path, max_frames=5).frames) == 5


def test_the_byte_cap(tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", clip, 8.0)
    monkeypatch.setattr(limits, "MAX_DECODED_BYTES", 3 * clip[0].nbytes)
    with pytest.raises(MediaError, match=r"9 frames of 48 x 32.*at most 3 frames"):
        read_video(path)


def test_the_time_limit(tmp_path: Path, clip: np.ndarray) -> None:
    path = write_video(tmp_path / "clip.mp4", clip, 8.0)
    with pytest.raises(MediaError, match="too long to decode"):
        read_video(path, time_limit=-1.0)


def test_a_huge_gif_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(b"GIF89a\xff\xff\xff\xff\x70\x00\x00\x2c\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x01\x00\x00\x3b")
    with pytest.raises(MediaError, match=r"65535 x 65535|too many pixels|damaged"):
        read_video(path)
