"""Pictures: upright, RGB, of the right tone and size, or a reason why not; contact sheets."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from vgen.errors import MediaError, RequestError, ShapeError
from vgen.io.media.images import as_rgb, contact_sheet, fit_image, read_image
from vgen.io.media.masks import mask_values


def _quarters() -> Image.Image:
    picture = Image.new("RGB", (6, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (3, 0, 6, 4))
    picture.paste((0, 255, 0), (0, 2, 3, 4))
    return picture


def test_a_companion_of_macos_is_named_as_such(tmp_path: Path) -> None:
    companion = tmp_path / "._x.png"
    companion.write_bytes(b"\x00\x05\x16\x07" + bytes(78))
    with pytest.raises(MediaError, match=rf"macOS notes about x\.png .* give {tmp_path / 'x.png'}"):
        read_image(companion)
    _quarters().save(tmp_path / "._y.png", "PNG")
    assert read_image(tmp_path / "._y.png").size == (6, 4), "only its content makes it one"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = _quarters() if back is None else _quarters().transpose(back)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(_quarters()))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_show_the_background(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        picture = Image.new("P", (2, 2), 0)
        picture.putpalette([9, 9, 9, 200, 0, 0])
        picture.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (2, 2), (0, 0, 0, 0) if mode == "RGBA" else (0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "a.png", background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_half_transparent(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == pytest.approx((127,) * 3, abs=1)


def test_sixteen_bits_keep_their_tone(tmp_path: Path) -> None:
    values = np.array([[0, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MediaError, match="floating-point"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_with_a_transparent_value(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 300, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}", transparency=300)
    found = np.asarray(read_image(tmp_path / f"a.{kind}"))[0, :, 0].tolist()
    assert found == ([0, 255, 255] if kind == "png" else [0, 1, 255]), "a tiff has no transparent value"


def test_integers_of_unknown_range_are_refused() -> None:
    with pytest.raises(MediaError, match=r"the picture has integers from 0 to 70000.*16 bits"):
        as_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


def _picture_of(mode: str) -> Image.Image:
    """Three pixels: black, white, and one that shows green if its alpha is not looked at."""
    if mode in ("P", "PA"):
        picture = Image.new("P", (3, 1), 0)
        picture.putpalette([0, 0, 0, 255, 255, 255, 0, 200, 0])
        picture.putdata([0, 1, 2])
        if mode == "P":
            picture.info["transparency"] = 2
            return picture
        picture = picture.convert("PA")
        picture.putalpha(Image.fromarray(np.array([[255, 255, 0]], np.uint8)))
        return picture
    if mode == "RGB":
        picture = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255], [0, 200, 0]]], np.uint8))
        picture.info["transparency"] = (0, 200, 0)
        return picture
    rgba = Image.fromarray(np.array([[[0, 0, 0, 255], [255, 255, 255, 255], [0, 200, 0, 0]]], np.uint8))
    return rgba.convert("LA").convert("La") if mode == "La" else rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "P", "PA", "RGB"])
def test_every_kind_of_transparency(mode: str) -> None:
    picture = _picture_of(mode)
    found = as_rgb(picture, background=(9, 99, 199))
    assert np.asarray(found)[0].tolist() == [[0, 0, 0], [255, 255, 255], [9, 99, 199]]
    assert np.asarray(as_rgb(found))[0].tolist() == np.asarray(found)[0].tolist()
    assert mask_values(picture)[0].tolist() == [0, 1, 0], "what is transparent is not white"


def test_masks_have_one_rule(tmp_path: Path) -> None:
    clear = np.full((10, 10, 4), 255, np.uint8)
    clear[..., 3] = 0
    clear[:2, :5, 3] = 255
    assert mask_values(Image.fromarray(clear)).mean() == pytest.approx(0.1)
    assert mask_values(Image.fromarray(np.array([[0, 128 * 257, 65535]], np.uint16)))[0].tolist() == pytest.approx(
        [0, 128 / 255, 1]
    )
    assert mask_values(Image.fromarray(np.array([[False, True]])))[0].tolist() == [0, 1]
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert mask_values(Image.open(tmp_path / "a.png"))[0].tolist() == [1, 1, 0]
    with pytest.raises(MediaError, match="mask\\[0\\] has floating-point pixels"):
        mask_values(Image.fromarray(np.ones((2, 2), np.float32)), "mask[0]")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("read", [as_rgb, mask_values])
def test_pictures_from_python_that_cannot_be_loaded(kind: str, read: Callable[..., object]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, kind)
    with pytest.raises(MediaError, match=r"image\[1\] is damaged or truncated"):
        read(Image.open(io.BytesIO(content.getvalue()[:3000])) if kind != "TIFF" else _closed(content), name="image[1]")
    with pytest.raises(MediaError, match=r"its file was closed|closed file|damaged"):
        read(_closed(content))


def _closed(content: io.BytesIO) -> Image.Image:
    with Image.open(io.BytesIO(content.getvalue())) as picture:
        return picture


def test_nothing_to_change_is_not_copied() -> None:
    picture = Image.new("RGB", (2, 2))
    assert as_rgb(picture) is picture


def test_lab_pictures() -> None:
    white = Image.merge("LAB", [Image.new("L", (1, 1), value) for value in (255, 128, 128)])
    assert as_rgb(white).getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=2)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    Image.new(mode, (5, 3)).save(tmp_path / f"a{suffix}")
    found = read_image(tmp_path / f"a{suffix}")
    assert (found.mode, found.size) == ("RGB", (5, 3))


def test_colour_profiles(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (2, 2), (200, 100, 50)).save(tmp_path / "a.png", icc_profile=srgb)
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (200, 100, 50)
    Image.new("RGB", (2, 2), (200, 100, 50)).save(tmp_path / "b.png", icc_profile=b"no profile at all")
    assert read_image(tmp_path / "b.png").getpixel((0, 0)) == (200, 100, 50)


def _swapped_profile() -> bytes:
    """sRGB's profile with the red and the blue primary exchanged."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"tXYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tXYZ", b"bXYZ", 1)
    return data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_profile_is_applied_once(tmp_path: Path, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.new("RGB", (3, 2), (204, 0, 0)).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=_swapped_profile(), exif=exif)
    found = read_image(tmp_path / "a.png")
    assert found.size == ((3, 2) if orientation == 1 else (2, 3))
    assert found.getpixel((0, 0)) == pytest.approx((0, 0, 204), abs=3)
    assert as_rgb(found).getpixel((0, 0)) == found.getpixel((0, 0)), "the profile went with the conversion"


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 10_000, 20_000, 60_000])
def test_huge_pictures_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaError, match=r"a\.png.*8192 x 8192"):
        read_image(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaError, match=r"a\."):
        read_image(path)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a picture of words")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    for name, message in {
        "empty.png": "is empty",
        "text.png": "is not a picture",
        "script.png": "is not a picture",
        "missing.png": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(MediaError, match=message):
            read_image(tmp_path / name)
    with pytest.raises(MediaError, match="is not a local file"):
        read_image("https://127.0.0.1/a.png")


@pytest.mark.parametrize("mode", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("size", [(64, 48), (100, 10), (10, 100), (1, 1), (1, 3000), (37, 41)])
def test_every_size_is_reached(mode: str, size: tuple[int, int]) -> None:
    assert fit_image(Image.new("RGB", size), 48, 64, mode).size == (64, 48)


def test_what_each_mode_keeps() -> None:
    picture = Image.new("RGB", (300, 100), (255, 255, 255))
    picture.paste((255, 0, 0), (0, 0, 100, 100))
    picture.paste((0, 0, 255), (200, 0, 300, 100))
    cover, contain, stretch = (np.asarray(fit_image(picture, 60, 60, mode)) for mode in ("cover", "contain", "stretch"))
    assert cover.min() > 230, "only the white middle is left"
    assert contain[0].max() == 0, "black above"
    assert contain[30, 5].tolist() == [255, 0, 0]
    assert contain[30, 54].tolist() == [0, 0, 255]
    assert stretch[0, 5].tolist() == [255, 0, 0]
    same = Image.new("RGB", (60, 60))
    assert fit_image(same, 60, 60) is same


def test_fit_refuses_nonsense() -> None:
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(RequestError, match="fit='crop' is not known; use one of cover, contain, stretch"):
        fit_image(picture, 4, 8, "crop")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="8 x 0"):
        fit_image(picture, 0, 8)


def test_contact_sheets(make_clip: Callable[..., np.ndarray]) -> None:
    clips = [make_clip(17), make_clip(5)]
    plain = contact_sheet(clips, frames_per_row=9)
    assert plain.size == (9 * 50 - 2 + 8, 2 * 32 + 12)
    pixels = np.asarray(plain)
    assert np.array_equal(pixels[4:36, 4:52], clips[0][0])
    assert np.array_equal(pixels[4:36, 4 + 8 * 50 : 52 + 8 * 50], clips[0][16]), "the last frame is shown"
    assert np.array_equal(pixels[40:72, 4 + 4 * 50 : 52 + 4 * 50], clips[1][4])
    labelled = contact_sheet(clips, ["a red block", "überlang 🎈 " * 50], scale=2, columns=2)
    assert labelled.height == 16 + 64 + 8
    assert np.asarray(labelled)[4:20].min() < 100, "the label is drawn"


def test_contact_sheets_refuse_nonsense(make_clip: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ShapeError, match="at least one clip"):
        contact_sheet([])
    with pytest.raises(RequestError, match="1 were given for 2 clips"):
        contact_sheet([make_clip(), make_clip()], ["a"])
    with pytest.raises(RequestError, match="scale=0"):
        contact_sheet([make_clip()], scale=0)
    with pytest.raises(ShapeError, match="uint8"):
        contact_sheet([make_clip().astype(float)])
