"""A model whose clips are measured: what makes the clips of every measure, each from a seed of its own.

Importing this needs no torch, so that the command can check which measures are asked for first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteClip, SpriteWorld
from vgen.training.evaluate.resumable import Measurements
from vgen.training.judge.judge import centres_of

if TYPE_CHECKING:
    import torch

    from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition

Clips = NDArray[np.uint8]
Centres = NDArray[np.float32]
GIVEN_FRAMES: Final = (5, 9)
"""How many frames the predictions are given."""


class Budget(NamedTuple):
    """How much is measured: clips for the VAE, prompts per split, seeds per prompt, clips per batch."""

    clips: int
    prompts: int
    seeds: int
    batch: int = 16


@dataclass
class ScoredModel:
    """A pipeline, the tier of SpriteWorld it is scored on, and how much is measured.

    Attributes:
        pipeline: the model.
        tier: of SpriteWorld.
        budget: how much is measured.
        seed: of the first clip of every measure; the clips after it count up.
        kept: what has been measured so far.
        settings: of every call of a pipeline (guidance_scale, num_inference_steps ...).
    """

    pipeline: TextToVideoPipeline
    tier: int
    budget: Budget
    seed: int = 0
    kept: Measurements = field(default_factory=Measurements)
    settings: dict[str, Any] = field(default_factory=dict)

    def world(self, **shape: Any) -> SpriteWorld:
        """The test split at the length, size and frame rate of the model's clips, or at those of `shape`."""
        return SpriteWorld("test", self.tier, **(shape or canvas(self.pipeline)))

    def test_clips(self) -> list[SpriteClip]:
        """The first clips of the test split, one per prompt."""
        world = self.world()
        return [world.sample(index) for index in range(self.budget.prompts)]

    def from_text(self, prompts: Sequence[str], numbers: range, **settings: Any) -> Clips:
        """Clips made from prompts, uint8 [B, F, H, W, 3]; `numbers` are those of the clips in their measure."""
        return self._call(self.pipeline, numbers, prompt=list(prompts), **settings)

    def from_images(self, images: Clips, prompts: Sequence[str], numbers: range) -> Clips:
        """As `from_text`, with first frames given, uint8 [B, H, W, 3]; what is given is not pasted back."""
        import torch

        from vgen.pipelines import ImageToVideoPipeline

        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        pipeline = ImageToVideoPipeline(**self.pipeline.components)
        return self._call(pipeline, numbers, image=pixels, prompt=list(prompts), keep_known_pixels=False)

    def from_known(self, conditions: Sequence[list[VideoCondition]], prompts: Sequence[str], numbers: range) -> Clips:
        """As `from_text`, with known pixels, which are not pasted back."""
        given: dict[str, Any] = {"conditions": list(conditions), "prompt": list(prompts), "keep_known_pixels": False}
        return self._call(self.predictor(), numbers, **given)

    def predictor(self) -> MaskedPredictionPipeline:
        """The model as what completes known pixels."""
        from vgen.pipelines import MaskedPredictionPipeline

        pipeline = MaskedPredictionPipeline(**self.pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def restored(self, clips: Clips) -> Clips:
        """Clips through the VAE."""
        return reconstruct(self.pipeline, clips)

    def untrained(self) -> ScoredModel:
        """The same model with freshly drawn weights of its transformer."""
        import copy

        import torch

        fresh = copy.deepcopy(self.pipeline.transformer)
        fresh.init_weights(torch.Generator(fresh.device).manual_seed(0))
        return replace(self, pipeline=type(self.pipeline)(**{**self.pipeline.components, "transformer": fresh}))

    def _call(self, pipeline: Any, numbers: range, **given: Any) -> Clips:
        pipeline.set_progress_bar_config(disable=True)
        noise = generators(self.seed, numbers)
        made: Clips = pipeline(generator=noise, output_type="uint8", **{**self.settings, **given}).frames
        return made

    @cached_property
    def moving(self) -> tuple[list[SpriteClip], list[Centres]]:
        """Test clips in which something moves, and the tracks of their objects, as the judge sees them.

        One object is seen in every frame; of two, one may be hidden where no centre is asked for.
        """
        world, count = self.world(), self.budget.prompts
        tracks = self.kept.map(_moving_track, ((world.sample(index),) for index in range(2 * count)))
        found = list(islice((pair for pair in tracks if pair is not None), count))
        return [clip for clip, _ in found], [track for _, track in found]


def _moving_track(clip: SpriteClip) -> tuple[SpriteClip, Centres] | None:
    """The clip and its track [F, objects, 2]; None where it rests or is hidden."""
    whole, last = centres_of(clip.frames, clip.key), len(clip.frames) - 1
    asked = slice(None) if whole.shape[1] == 1 else [0, *(given - 1 for given in GIVEN_FRAMES), last // 2, last]
    track = whole[asked]
    shown = clip.masks.any(axis=(1, 2)).all() and np.isfinite(track).all()
    return (clip, whole) if shown and np.ptp(track, axis=0).max() > 2 else None


def canvas(pipeline: TextToVideoPipeline) -> dict[str, Any]:
    """Length, size and frame rate of the model's clips."""
    defaults = pipeline.config.defaults
    return {name: defaults[name] for name in ("num_frames", "height", "width", "frame_rate") if name in defaults}


def generators(seed: int, numbers: range) -> list[torch.Generator]:
    """One per clip, by its number: its noise does not depend on the other clips of the batch."""
    import torch

    return [torch.Generator().manual_seed(seed + number) for number in numbers]


def full_prompt(clip: SpriteClip) -> str:
    """A caption that says colour, shape and motion."""
    rng = stream("prompt", clip.split, clip.tier, clip.index)
    return caption(clip.key, rng, require=("colour", "shape", "motion"))


def reconstruct(pipeline: TextToVideoPipeline, clips: Clips) -> Clips:
    """Clips through the VAE, uint8 [B, F, H, W, 3]."""
    import torch

    from vgen.engine.speed.host_copy import to_bytes

    vae = pipeline.vae
    with torch.no_grad():
        video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).to(vae.device, torch.float32) / 127.5 - 1
        timestep = torch.zeros(len(video), device=vae.device) if vae.config.timestep_conditioning else None
        restored = vae.decode(vae.encode(video.to(vae.dtype)).latent_dist.mode(), timestep).sample
    return to_bytes(restored).cpu().numpy()
