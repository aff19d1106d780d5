"""Samples of footage, drawn by weight, one bucket at a time, with the pixels they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.training.data.footage.buckets import Bucket, Sample, plan_samples
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.data.footage.pixels import read_samples
from vgen.training.data.footage.records import DataSet

_PIXEL_BYTES = 1 << 29


class FootageSamples:
    """Samples of a cache.

    Args:
        index: of the cache.
        weights: by folder of the footage, see `FootageConfig`.
    Raises:
        RequestError: the data set has changed since, or a weight is for no folder.
    """

    def __init__(self, index: CacheIndex, weights: Mapping[str, float]) -> None:
        self.index = index
        self.samples = list(index.samples)
        self.data = DataSet.open(index.data)
        self.clips = {clip.id: clip for clip in self.data.clips}
        self._check_unchanged()
        self.weights = _weights(self.samples, weights)
        self._pixels: dict[int, Tensor] = {}

    def _check_unchanged(self) -> None:
        """Refuse samples that the data set would not give any more: other footage, another crop, a clip refused."""
        planned, _ = plan_samples(self.data.clips, self.index.geometry)
        keys = {(sample.clip, sample.key) for sample in planned}
        changed = next((sample.clip for sample in self.samples if (sample.clip, sample.key) not in keys), None)
        if changed is not None:
            raise RequestError(
                f"{self.index.data}: clip {changed} is gone or has changed since it was cached: run `vgen data cache` "
                "again."
            )

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns of the largest clips."""
        largest = max((sample.bucket for sample in self.samples), key=lambda bucket: bucket.height * bucket.width)
        return largest.height, largest.width

    def size(self, num_frames: int) -> int:
        """Number of samples that serve that length."""
        return sum(self.fits(sample.bucket.num_frames, num_frames) for sample in self.samples)

    def fits(self, length: int, num_frames: int) -> bool:
        """Whether a sample of `length` frames serves `num_frames`."""
        return length == num_frames

    def buckets(self) -> dict[Bucket, list[int]]:
        """Indices of the samples of each bucket."""
        buckets: dict[Bucket, list[int]] = {}
        for place, sample in enumerate(self.samples):
            buckets.setdefault(sample.bucket, []).append(place)
        return dict(sorted(buckets.items()))

    def choose(self, num_frames: int, count: int, generator: torch.Generator) -> list[int]:
        """Samples of one bucket of that length, buckets and samples by weight; a small bucket repeats its samples."""
        buckets = [places for bucket, places in self.buckets().items() if self.fits(bucket.num_frames, num_frames)]
        if not buckets:
            raise RequestError(f"num_frames={num_frames}: the cache has no sample of that length.")
        shares = torch.stack([self.weights[places].sum() for places in buckets])
        places = buckets[int(torch.multinomial(shares, 1, generator=generator))]
        weights = self.weights[places]
        chosen: list[int] = []
        while len(chosen) < count:
            batch = min(count - len(chosen), int((weights > 0).sum()))
            drawn = torch.multinomial(weights, batch, generator=generator)
            chosen += [places[int(place)] for place in drawn]
        return chosen

    def frame_rate(self, indices: Sequence[int]) -> float:
        """Of a batch, which is of one bucket."""
        return self.samples[int(indices[0])].bucket.frame_rate

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """uint8 [B, F, H, W, 3]: decoded again where they are not cached."""
        missing = [place for place in dict.fromkeys(indices) if place not in self._pixels]
        by_key = {self.samples[place].key: place for place in missing}
        wanted = [self.samples[place] for place in missing]
        new = {by_key[s.key]: torch.from_numpy(frames) for s, frames in read_samples(wanted, self.clips)}
        result = torch.stack([new[place] if place in new else self._pixels[place] for place in indices])
        for place, frames in new.items():
            if sum(kept.numel() for kept in self._pixels.values()) + frames.numel() <= _PIXEL_BYTES:
                self._pixels[place] = frames
        return result


def _weights(samples: Sequence[Sample], by_folder: Mapping[str, float]) -> Tensor:
    """How often each sample is drawn, relative to the others: the weight of the deepest folder that names it."""
    unknown = [folder for folder in by_folder if not any(_is_in(s.folder, folder) for s in samples)]
    if unknown:
        have = ", ".join(sorted({sample.folder for sample in samples}))
        raise RequestError(f"weights: no sample is in the folder {unknown[0]!r}; there are {have}.")
    deepest = sorted(by_folder, key=len)
    values = [
        next((by_folder[folder] for folder in reversed(deepest) if _is_in(sample.folder, folder)), 1.0)
        for sample in samples
    ]
    if not any(values):
        raise RequestError("weights: every sample has weight 0; nothing would be trained on.")
    return torch.tensor(values, dtype=torch.float64)


def _is_in(place: str, folder: str) -> bool:
    return folder == "." or place == folder or place.startswith(f"{folder}/")
