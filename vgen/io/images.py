"""Reading still pictures and fitting them to a size; `contact_sheet` shows clips as one picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from vgen.errors import MediaError, RequestError
from vgen.io.contact_sheet import contact_sheet
from vgen.io.containers import local_file
from vgen.io.demux import check_picture_size
from vgen.types import FitMode

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FitMode", "contact_sheet", "fit_image", "flatten", "read_image"]


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are tried; those that run other programs or scripts are not among them."""

WHITE = (255, 255, 255)
"""What shows through transparent places."""


def read_image(path: str | Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Read a picture: upright, RGB, 8 bits.

    EXIF orientation is applied. Transparent places show `background`. 16-bit grey keeps its tone. Colours with an
    embedded profile other than sRGB are converted to sRGB. Of an animated file the first frame is taken.

    Args:
        path: local png, jpeg, webp, gif, bmp, tiff or ppm file.
        background: RGB behind transparent places; white if left out.
    Returns:
        mode "RGB".
    Raises:
        MediaError: missing, not a picture, damaged or truncated, or above `limits.MAX_PICTURE_PIXELS` (known from
            the header, before anything of that size is allocated).
    """
    from PIL import Image, ImageOps

    found = local_file(path, "picture")
    if found.is_dir():
        raise MediaError(f"{found} is a folder; a picture file is needed.")
    if found.stat().st_size == 0:
        raise MediaError(f"{found} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(found, formats=FORMATS) as opened:
                check_picture_size(found, *opened.size)
                opened.load()
                picture = ImageOps.exif_transpose(opened)
                picture.info.setdefault("icc_profile", opened.info.get("icc_profile"))
    except Image.UnidentifiedImageError:
        kinds = ", ".join(name.lower() for name in FORMATS)
        raise MediaError(f"{found} is not a picture that can be read ({kinds}).") from None
    except Image.DecompressionBombError:
        raise MediaError(f"{found} has too many pixels; at most 8192 x 8192 are read. Make it smaller first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{found} is damaged or truncated: {error}.") from None
    return flatten(_to_srgb(picture), background)


def flatten(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """`picture` of any mode as 8-bit RGB over `background`.

    Raises:
        MediaError: floating-point pixels, whose range is not known.
    """
    from PIL import Image

    if picture.mode == "F":
        raise MediaError("Pictures with floating-point pixels are not read: their range is unknown. Save 8 or 16 bits.")
    if picture.mode.startswith("I"):
        picture = _sixteen_to_eight(picture)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        below = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return picture.convert("RGB")


def _sixteen_to_eight(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Apply the embedded colour profile; a profile that cannot be read is left aside, as viewers do."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK"):
        return picture
    import io

    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return picture
        mode = "RGB" if picture.mode == "CMYK" else picture.mode
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return picture
    return converted or picture


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
