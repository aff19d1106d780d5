"""Filters that look at frames and captions with a local model; what they refuse counts as dropped from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vgen.errors import CheckpointError, RequestError
from vgen.training.data.footage.buckets import thumbnail_sample
from vgen.training.data.footage.describe import load_local
from vgen.training.data.footage.pixels import read_samples
from vgen.training.data.footage.records import REFUSED, DataSet, Dropped, write_rows

FRAMES = 4
"""Frames of a clip that are looked at, evenly spaced."""

FRAME_PIXELS = 336
"""Their shorter side, at most."""


class TextVideoSimilarity:
    """Cosine of the mean embedding of the frames and the nearest caption's, by a CLIP-like model.

    Args:
        folder: of the model, with its processor.
        device: where it runs.
    Raises:
        CheckpointError: it cannot be loaded, or embeds no pictures and texts.
    """

    name = "text-video similarity"

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.model, self.processor = load_local(folder, "AutoModel", "CLIP model", device)
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise CheckpointError(f"The model in {folder} embeds no pictures and texts; a CLIP folder is needed.")

    @torch.no_grad()
    def score(self, frames: np.ndarray, captions: Sequence[str]) -> float:
        """The score of a clip, higher is better; -1 without a caption.

        Args:
            frames: uint8 [F, H, W, 3], a few of the clip.
            captions: of the clip.
        """
        if not captions:
            return -1.0
        pictures = [Image.fromarray(frame) for frame in frames]
        inputs = self.processor(
            text=list(captions), images=pictures, return_tensors="pt", padding=True, truncation=True
        ).to(self.model.device)
        found = self.model(**inputs)
        image = torch.nn.functional.normalize(found.image_embeds.float(), dim=-1).mean(dim=0)
        text = torch.nn.functional.normalize(found.text_embeds.float(), dim=-1)
        return float((text @ torch.nn.functional.normalize(image, dim=0)).max())


def refuse_low_scores(
    folder: Path, scorer: TextVideoSimilarity, at_least: float, on_line: Callable[[str], None]
) -> tuple[Dropped, ...]:
    """Score every clip of a data set, and replace its list of refused clips by those that score below a limit.

    Returns:
        The refused clips, with their scores as reasons; each score also goes to `on_line`.
    Raises:
        RequestError: every clip is below.
        MediaError: a source is gone.
    """
    data = DataSet.open(folder, refused=True)
    clips = {clip.id: clip for clip in data.clips}
    refused = []
    samples = [
        thumbnail_sample(clip, min(FRAMES, clip.num_frames), FRAME_PIXELS / min(clip.crop[2:])) for clip in data.clips
    ]
    for sample, frames in read_samples(samples, clips):
        clip = clips[sample.clip]
        score = scorer.score(frames, data.captions(clip))
        on_line(f"{clip.id}: {score:.3f}")
        if score < at_least:
            refused.append(clip.dropped(f"{scorer.name} of {score:.3f}, below {at_least:g}"))
    if len(refused) == len(clips):
        raise RequestError(f"at_least={at_least:g} leaves no clip of {folder}; nothing was changed. Use a lower limit.")
    write_rows(folder / REFUSED, refused, Path(data.about["footage"]))
    return tuple(refused)
