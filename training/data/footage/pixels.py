"""The pixels of samples: each source is decoded once, and only what samples need is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vgen.errors import MediaError, counted
from vgen.io.content_hash import content_hash
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.images import read_image
from vgen.io.media.masks import read_mask_file
from vgen.training.data.footage.buckets import Sample
from vgen.training.data.footage.files import mask_of, masks_in
from vgen.training.data.footage.records import Clip


def read_samples(samples: Sequence[Sample], clips: Mapping[str, Clip]) -> Iterator[tuple[Sample, np.ndarray]]:
    """Samples with their pixels, uint8 [F, H, W, 3], source by source.

    Args:
        samples: any.
        clips: by id.
    Raises:
        MediaError: a source is gone or was changed since it was ingested.
    """
    by_source: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_source[clips[sample.clip].source].append(sample)
    for source, wanted in by_source.items():
        _check_unchanged(Path(source), clips[wanted[0].clip])
        if clips[wanted[0].clip].kind == "image":
            picture = np.asarray(read_image(source))
            yield from ((sample, fit(picture, clips[sample.clip].crop, sample)[None]) for sample in wanted)
        else:
            yield from _from_video(Path(source), wanted, clips)


def _check_unchanged(source: Path, clip: Clip) -> None:
    try:
        now = content_hash(source)
    except OSError:
        raise MediaError(f"{source} is missing. Put it back, or ingest the footage again.") from None
    if now != clip.source_hash:
        raise MediaError(f"{source} holds something else than when it was ingested; ingest the footage again.")


def _from_video(
    source: Path, wanted: Sequence[Sample], clips: Mapping[str, Clip]
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Samples of one video, the earliest ending first; a variable frame rate needs its timeline first."""
    stream, chosen = FootageStream(source), None
    if clips[wanted[0].clip].resampled:
        timing = FootageStream(source)
        for _ in timing:  # the timeline is complete at the end; no picture is kept
            pass
        chosen = timing.timeline.chosen
    needed: dict[int, list[tuple[Sample, int]]] = defaultdict(list)
    for sample in wanted:
        for position, index in enumerate(sample.frames):
            needed[index if chosen is None else chosen[index]].append((sample, position))
    open_samples: dict[str, np.ndarray] = {}
    left = {sample.key: len(sample.frames) for sample in wanted}
    for place, picture in enumerate(stream):
        for sample, position in needed.pop(place, ()):
            if sample.key not in open_samples:
                open_samples[sample.key] = np.empty((len(sample.frames), *sample.bucket[1:3], 3), np.uint8)
            open_samples[sample.key][position] = fit(picture, clips[sample.clip].crop, sample)
            left[sample.key] -= 1
            if left[sample.key] == 0:
                yield sample, open_samples.pop(sample.key)
        if not needed:
            return
    raise MediaError(f"{source} has fewer frames than when it was ingested; ingest the footage again.")


def fit(picture: np.ndarray, crop: tuple[int, int, int, int], sample: Sample) -> np.ndarray:
    """Resize the largest centred part of a crop (top, left, height, width) of the sample's aspect ratio to its size.

    `picture` is uint8 [H, W, 3], or [H, W] of a mask, and so is the result.
    """
    top, left, height, width = crop
    tall, wide = sample.bucket.height, sample.bucket.width
    scale = min(height / tall, width / wide)
    part_height, part_width = tall * scale, wide * scale
    y, x = top + (height - part_height) / 2, left + (width - part_width) / 2
    box = (x, y, min(x + part_width, picture.shape[1]), min(y + part_height, picture.shape[0]))
    return np.array(Image.fromarray(picture).resize((wide, tall), Image.Resampling.LANCZOS, box=box))


def mask_hashes(clips: Iterable[Clip]) -> dict[str, str]:
    """The content hashes of clips' masks, by id, "" for a clip without one; each folder is listed once.

    Raises:
        MediaError: a clip has several masks, or one that is not a picture or a video.
    """
    listed: dict[Path, dict[Path, list[Path]]] = {}
    found = {}
    for clip in clips:
        source = Path(clip.source)
        if source.parent not in listed:
            listed[source.parent] = masks_in(source.parent)
        path = mask_of(source, listed[source.parent])
        found[clip.id] = "" if path is None else content_hash(path)
    return found


def read_mask(path: Path, clip: Clip, sample: Sample) -> np.ndarray:
    """A sample's part of its clip's mask, float32 [F, H, W] in [0, 1].

    Raises:
        MediaError: the mask is of another size or shorter than the clip, or has no white place there.
    """
    last = max(sample.frames)
    white = read_mask_file(path, last + 1)
    if len(white.white) <= last and not white.is_picture:
        raise MediaError(f"{path} has {counted(len(white.white), 'frame')}, and frame {last} of {clip.source} is used.")
    pictures = white.white[[0] * len(sample.frames) if white.is_picture else list(sample.frames)]
    top, left, height, width = clip.crop
    if pictures.shape[1] < top + height or pictures.shape[2] < left + width:
        raise MediaError(f"{path} is {pictures.shape[2]} x {pictures.shape[1]}; it must be as large as {clip.source}.")
    mask = np.stack([fit(picture, clip.crop, sample) for picture in pictures]) / np.float32(255)
    if not (mask > 0.5).any():
        raise MediaError(f"{path} has no white place in frames {sample.frames[0]} to {last}: nothing would be learned.")
    return mask
