"""What the numbers of a video mean: which matrix leads from YCbCr to RGB, and what is refused."""

from __future__ import annotations

from pathlib import Path

from vgen.errors import MediaError

UNSTATED = 2
"""Of ITU-T H.273, for matrix, transfer and primaries: the file says nothing."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
BT2020_PRIMARIES = 9
MATRICES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}


def assumed_matrix(height: int, width: int) -> str:
    """The matrix of a video that states none: "BT.709" for HD, "BT.601" below, as players assume."""
    return "BT.709" if width >= 1280 or height > 576 else "BT.601"


def describe_colours(matrix: int, color_range: int, height: int, width: int) -> str:
    """How the YCbCr of a video is read, and whether the file says so.

    Args:
        matrix: matrix coefficients as in ITU-T H.273.
        color_range: 2 = full; what is not stated is limited.
        height, width: as stored.
    """
    extent = "full" if int(color_range) == 2 else "limited"
    if int(matrix) == UNSTATED:
        kind = "HD" if assumed_matrix(height, width) == "BT.709" else "SD"
        return f"{assumed_matrix(height, width)} (assumed, as {kind} that states none), {extent} range"
    return f"{MATRICES.get(int(matrix), f'matrix {int(matrix)}')}, {extent} range"


def check_tone(path: Path, transfer: int, primaries: int, matrix: int) -> None:
    """Refuse high dynamic range: its colours would come out wrong without tone mapping.

    Args:
        path: file, for the message.
        transfer: transfer characteristics as in ITU-T H.273 (16 = PQ, 18 = HLG).
        primaries: colour primaries as in ITU-T H.273 (9 = BT.2020).
        matrix: matrix coefficients as in ITU-T H.273 (9 and 10 = BT.2020).
    Raises:
        MediaError: HDR or wide-gamut material.
    """
    wide = int(primaries) == BT2020_PRIMARIES or MATRICES.get(int(matrix)) == "BT.2020"
    kind = HDR_TRANSFERS.get(int(transfer)) or ("BT.2020 colours" if wide else None)
    if kind:
        raise MediaError(f"{path} is high dynamic range or wide gamut ({kind}); convert it to SDR BT.709 first.")
