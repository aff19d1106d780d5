"""Reading still pictures and fitting them to a size; `contact_sheet` shows clips as one picture."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from vgen.errors import MediaError, RequestError
from vgen.io.media.codec.containers import local_file
from vgen.io.media.codec.demux import check_picture_size
from vgen.io.media.comment import load_comment
from vgen.io.media.contact_sheet import contact_sheet
from vgen.io.media.enlarged import WrittenSize
from vgen.types import FitMode

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FitMode", "as_rgb", "contact_sheet", "fit_image", "read_image", "shrink_into"]


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are tried; those that run other programs or scripts are not among them."""

WHITE = (255, 255, 255)
"""What shows through transparent places."""

_ORIENTATION = 0x0112
"""EXIF tag."""


def read_image(path: str | Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Read a picture: upright, RGB, 8 bits.

    `as_rgb` states the rule. Of an animated file the first frame is taken. A frame that `write_video` enlarged has its
    own size again.

    Args:
        path: local png, jpeg, webp, gif, bmp, tiff or ppm file.
        background: RGB behind transparent places; white if left out.
    Returns:
        mode "RGB".
    Raises:
        MediaError: missing, not a picture, damaged or truncated, or above `limits.MAX_PICTURE_PIXELS` (known from
            the header, before anything of that size is allocated).
    """
    import numpy as np
    from PIL import Image

    with open_picture(path) as opened:
        picture, written = as_rgb(opened, background, str(path)), WrittenSize.read(load_comment(comment_of(opened)))
    return picture if written is None else Image.fromarray(written.undo(np.asarray(picture)))


def comment_of(picture: Image.Image) -> str | None:
    """The comment of an opened file, or None."""
    found = picture.info.get("comment")
    return found.decode("latin-1") if isinstance(found, bytes) else found


@contextmanager
def open_picture(path: str | Path, formats: Sequence[str] = FORMATS, load: bool = True) -> Iterator[Image.Image]:
    """The opened file, its size checked.

    Args:
        path: local file.
        formats: of Pillow that are tried.
        load: decode it (of an animation, the first frame).
    Raises:
        MediaError: as `read_image`, also for damage that is met inside the `with`.
    """
    from PIL import Image

    found = local_file(path, "picture")
    if found.is_dir():
        raise MediaError(f"{found} is a folder; a picture file is needed.")
    if found.stat().st_size == 0:
        raise MediaError(f"{found} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(found, formats=tuple(formats)) as opened:
                check_picture_size(found, *opened.size)
                if load:
                    opened.load()
                yield opened
    except Image.UnidentifiedImageError:
        kinds = ", ".join(name.lower() for name in formats)
        raise MediaError(f"{found} is not a picture that can be read ({kinds}).") from None
    except Image.DecompressionBombError:
        raise MediaError(f"{found} has too many pixels; at most 8192 x 8192 are read. Make it smaller first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{found} is damaged or truncated: {error}.") from None


def as_rgb(picture: Image.Image, background: tuple[int, int, int] = WHITE, name: str = "the picture") -> Image.Image:
    """A picture of any mode as this project reads it: upright, sRGB, 8 bits, opaque.

    The one rule for files, for pictures handed in from Python and for footage: EXIF orientation is applied, 16-bit grey
    keeps its tone, colours with an embedded profile are converted to sRGB, and transparent places (an alpha channel, or
    a colour or palette entry declared transparent) show `background`. Applied twice it changes nothing more.

    Args:
        picture: any size and mode.
        background: RGB behind transparent places; white by default.
        name: what errors call it.
    Returns:
        mode "RGB"; `picture` itself if there is nothing to change.
    Raises:
        MediaError: damaged, or pixels whose range is not known (floating-point, 32-bit integers beyond 16 bits).
    """
    from PIL import Image

    found = _to_srgb(eight_bits(upright(picture, name), name))
    if found.mode in ("RGBA", "LA"):
        below = Image.new("RGBA", found.size, (*background, 255))
        found = Image.alpha_composite(below, found.convert("RGBA"))
    if found.mode != "RGB":
        found = found.convert("RGB")
    return found


def upright(picture: Image.Image, name: str) -> Image.Image:
    """Load a picture and apply its EXIF orientation; `picture` itself if it has none.

    Raises:
        MediaError: damaged, truncated or closed.
    """
    from PIL import ImageOps

    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, AssertionError) as error:  # the last where its file was closed
        cause = str(error) or "its file was closed before it was loaded"
        raise MediaError(f"{name} is damaged or truncated: {cause}.") from None
    try:
        turned = picture.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except (SyntaxError, ValueError, struct.error):
        return picture  # an EXIF block that cannot be read says nothing
    return ImageOps.exif_transpose(picture) if turned else picture


def eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Mode "L", "LA", "RGB", "RGBA", "CMYK" or another of 8 bits without transparency, whatever it was."""
    if picture.mode == "F":
        raise MediaError(f"{name} has floating-point pixels, whose range is unknown; save it with 8 or 16 bits.")
    if picture.mode.startswith("I"):
        return _grey_of_sixteen(picture, name)
    if picture.mode in ("La", "RGBa"):
        return picture.convert(picture.mode.upper())
    if picture.mode == "PA" or "transparency" in picture.info:
        return picture.convert("RGBA")
    if picture.mode == "LAB":
        from PIL import ImageCms

        found = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert found is not None, "only an operation in place gives none"
        found.info = {}
        return found
    return picture.convert("RGB") if picture.mode in ("P", "1", "YCbCr", "HSV", "RGBX") else picture


def _grey_of_sixteen(picture: Image.Image, name: str) -> Image.Image:
    """Integers of 0 to 65535 as 0 to 255, with alpha where one of them is declared transparent."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise MediaError(
            f"{name} has integers from {values.min()} to {values.max()}, beyond 16 bits: their range is unknown; "
            "save it with 8 or 16 bits."
        )
    grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    grey.info["icc_profile"] = picture.info.get("icc_profile")
    return grey


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Apply the embedded colour profile; one that cannot be read or is of other pixels is ignored, as viewers do."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return picture
    import io

    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return picture
        alpha = picture.getchannel("A") if picture.mode == "LA" else None
        colours = picture.getchannel("L") if picture.mode == "LA" else picture
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return picture
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted or picture


def shrink_into(image: Image.Image, height: int, width: int) -> Image.Image:
    """Make a picture smaller, in its own shape, until it lies within a size; one that does is returned as it is."""
    from PIL import Image

    scale = min(1.0, height / image.height, width / image.width)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)


def fit_image(image: Image.Image, height: int, width: int, mode: FitMode = "cover") -> Image.Image:
    """Bring a picture to a size.

    Args:
        image: any size, mode "RGB".
        height: rows wanted.
        width: columns wanted.
        mode: "cover" fills the size and cuts what stands over, evenly on both sides; "contain" shows all of it and
            fills the rest with black; "stretch" changes its shape.
    Returns:
        [height, width]; the same picture if it has this size already.
    Raises:
        RequestError: unknown mode, or a size below 1.
    """
    from PIL import Image, ImageOps

    if mode not in get_args(FitMode):
        raise RequestError(f"fit={mode!r} is not known; use one of {', '.join(get_args(FitMode))}.")
    if height < 1 or width < 1:
        raise RequestError(f"a picture cannot be made {width} x {height}; both sides must be 1 or more.")
    if image.size == (width, height):
        return image
    if mode == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "cover":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color=(0, 0, 0))
