"""Frame rates: from the instants at which frames are shown to one constant rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

COMMON_RATES = (24, 25, 30, 50, 60, 24000 / 1001, 30000 / 1001, 60000 / 1001, 8, 10, 12, 15, 16, 20, 48, 100, 120, 240)
"""Frames per second that cameras and models have; of two that fit equally well the first is taken."""

ASSUMED_RATE = 24.0
"""Frames per second of a folder or file that states none."""

TOO_SHORT, MANY = 0.55, 0.1
"""Share of the usual interval up to which one is too short for it, and share of such intervals that is too many."""

SAID_FROM = 0.1
"""Share of a frame's duration from which on a timestamp that is off is worth a word."""


class FrameRate(NamedTuple):
    """One constant rate for given instants.

    Attributes:
        frames_per_second: the rate.
        places: [F] for each given frame the number of its instant at that rate, ascending from 0.
        off: [F] seconds from that instant to the frame's timestamp, 0 or more.
        slowest, fastest: rates between the frames as they are.
    """

    frames_per_second: float
    places: np.ndarray
    off: np.ndarray
    slowest: float
    fastest: float

    @property
    def num_frames(self) -> int:
        """Frames at the constant rate."""
        return int(self.places[-1]) + 1

    @property
    def keeps_all(self) -> bool:
        """Whether each instant has exactly one frame: nothing is dropped or doubled."""
        return self._occupied == self.num_frames == len(self.places)

    @property
    def _occupied(self) -> int:
        import numpy as np

        return int((np.diff(self.places) > 0).sum()) + 1

    def chosen(self, count: int) -> np.ndarray:
        """[count] for each of the first frames at the constant rate the index of the given frame that it shows."""
        import numpy as np

        order = np.lexsort((-self.off, self.places))  # within an instant the nearest comes last
        return order[np.searchsorted(self.places, np.arange(count), side="right") - 1]

    def notes(self) -> tuple[str, ...]:
        """One sentence if frames are dropped, doubled, or moved by more than `SAID_FROM` of their duration."""
        given, moved = len(self.places), float(self.off.max())
        if not self.keeps_all:
            what = f"{given - self._occupied} of {given} dropped, {self.num_frames - self._occupied} doubled"
        elif moved * self.frames_per_second > SAID_FROM:
            what = f"every one kept, moved by at most {1000 * moved:.0f} ms"
        else:
            return ()
        return (
            f"The frame rate varies between {self.slowest:.4g} and {self.fastest:.4g} frames per second; "
            f"the frames were put at {self.frames_per_second:.5g} per second ({what}).",
        )


def nominal_rate(gaps: Sequence[float] | np.ndarray, tick: float, stated_rate: float | None = None) -> float:
    """The rate at which frames follow each other where none is missing, whatever freezes, bursts and jitter there are.

    It is the mean over the intervals near the median one, or, where many are shorter, near the median of those. The
    stated rate, or a common one, is taken instead if the timestamps are too coarse or uneven to tell it from that.

    Args:
        gaps: [F - 1] seconds from each frame to the next.
        tick: seconds, the precision of the timestamps.
        stated_rate: frames per second that the file states, if it does.
    """
    import numpy as np

    gaps = np.asarray(gaps, dtype=float)
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return stated_rate or ASSUMED_RATE
    median = np.median(gaps)
    while (gaps <= TOO_SHORT * median).mean() > MANY:  # most frames stand longer than one interval
        median = np.median(gaps[gaps <= TOO_SHORT * median])
    spread = 1.5 * np.median(np.abs(gaps[gaps < 1.5 * median] - median))
    usual = gaps[np.abs(gaps - median) <= min(0.45 * median, 3 * spread + 2 * tick + 0.05 * median)]
    rate = len(usual) / usual.sum()
    unsure = max(5e-4, 2 * (tick + spread) / usual.sum())
    for known in (stated_rate, *sorted(COMMON_RATES, key=lambda common: round(abs(common / rate - 1) / unsure))):
        if known and abs(known / rate - 1) <= unsure:
            return float(known)
    return float(rate)


def constant_rate(
    times: Sequence[float] | np.ndarray, tick: float, nominal: float, stated_rate: float | None = None
) -> FrameRate:
    """Put each frame at the nearest instant of one constant rate.

    Where the nominal, the stated or the mean rate gives every frame an instant of its own, all frames are kept. Else
    the nominal rate is taken: of frames at the same instant the nearest is shown, and where an instant has none the
    frame before it stays. Instants lie where they fit all timestamps best, not where the first happens to lie.
    Timestamps that are all the same say nothing.

    Args:
        times: [F] seconds, ascending.
        tick: seconds, the precision of `times`.
        nominal: see `nominal_rate`.
        stated_rate: frames per second that the file states, if it does.
    """
    import numpy as np

    found = np.asarray(times, dtype=float)
    gaps = np.diff(found)
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return FrameRate(nominal, np.arange(len(found)), np.zeros(len(found)), 0.0, 0.0)
    for rate in (nominal, stated_rate or nominal, (len(found) - 1) / (found[-1] - found[0]), nominal):
        places = (found - found[0]) * rate
        phase = float(np.angle(np.exp(2j * np.pi * places).mean())) / (2 * np.pi)
        nearest = np.rint(places - phase)
        off = np.maximum(np.abs(places - phase - nearest) / rate - tick, 0.0)
        settled = FrameRate(rate, (nearest - nearest[0]).astype(np.int64), off, 1 / gaps.max(), 1 / gaps.min())
        if settled.keeps_all:
            break
    return settled
