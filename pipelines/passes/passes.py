"""A call is a list of passes: each makes latents, most of them by denoising, from those of the pass before.

A call from noise or from a clip is one `Pass`; with a draft it is a `vgen.pipelines.passes.draft.DraftedPass`, in two
sizes the second is a `vgen.pipelines.passes.two_pass.RefiningPass`; where a mask hides pixels, `Reencoding` follows.
`vgen.pipelines.passes.plan` makes the list, the pipeline runs it in order and decodes the latents of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vgen.diffusion.conditions import ConditionSet
from vgen.diffusion.guidance import Guidance
from vgen.diffusion.tokens import pack
from vgen.events import Decoding
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.progress import CallSteps
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.encode import encode_given
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.reencode import renew_known
from vgen.pipelines.text.encoder import TextEmbeddings
from vgen.request.steps import skipped_steps
from vgen.types import LatentShape


class Sampler(Protocol):
    """The pipeline, as far as planning and running passes need it; see `vgen.pipelines.base.BasePipeline`."""

    scheduler: Any
    vae: Any
    transformer: Any
    patch_size: int
    convention: Convention
    interrupt: bool
    _execution_device: torch.device
    coder: Callable[[GenerationSettings], Coder]
    fill_settings: Callable[[Mapping[str, Any]], GenerationSettings]
    check_inputs: Callable[..., tuple[LatentShape, list[GivenPixels]]]
    prepare_latents: Callable[..., tuple[Tensor, ConditionSet]]
    sample: Callable[..., tuple[Tensor, TextEmbeddings]]
    predict: Callable[..., dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Pass:
    """Once through the denoising loop.

    Attributes:
        settings: of the pass: its size, steps, noise and generator.
        shape: latent size.
        given: what is known, at the size of the pass.
        guidance: of the settings.
        clip: what the pass starts from, as pixels or as normalised latents [B, C, f, h, w]; None: from noise.
    """

    settings: GenerationSettings
    shape: LatentShape
    given: Sequence[GivenPixels]
    guidance: Guidance
    clip: GivenPixels | Tensor | None = None

    @property
    def num_steps(self) -> int:
        """Denoising steps that the pass takes."""
        steps = self.settings.num_inference_steps
        return steps - skipped_steps(steps, self.settings.denoise_strength)

    def check(self, num_blocks: int) -> None:
        """Refuse a guidance that does not fit the steps or the transformer's blocks.

        Raises:
            RequestError: see `vgen.diffusion.guidance.Guidance.check`.
        """
        self.guidance.check(self.num_steps, num_blocks)

    def run(self, pipe: Sampler, steps: CallSteps, text: TextEmbeddings, before: Tensor | None) -> Tensor:
        """Make the latents of the pass.

        Args:
            pipe: does the denoising.
            steps: counts those of the call.
            text: embeddings; those that a callback changes count to the end of the pass.
            before: latents of the pass before, None for the first.
        Returns:
            [B, C, f, h, w], normalised, float32.
        """
        return pipe.sample(self, steps, text)[0]

    def start(self, pipe: Sampler, noise: Tensor, known: ConditionSet) -> Tensor:
        """The tokens to start from: noise, or a clip noised to where the schedule starts; known tokens mixed in.

        Args:
            pipe: its scheduler has the schedule of the pass.
            noise: [B, N, C].
            known: the condition set.
        Returns:
            [B, K + N, C].
        """
        sigma = pipe.scheduler.timesteps[0].to(noise.device) / pipe.scheduler.config.num_train_timesteps
        if self.clip is None or sigma >= 1:
            return known.start(noise)
        clip = self.clip
        if isinstance(clip, GivenPixels):
            clip = encode_given(pipe.coder(self.settings), clip, noise.device).latents
        return known.start(noise, pack(clip.to(noise), pipe.patch_size).expand(noise.shape), sigma)


@dataclass(frozen=True, eq=False)
class Reencoding:
    """Known cells encoded again next to what was made, see `vgen.pipelines.coding.reencode`; takes no steps.

    Attributes:
        settings, given: of the pass before.
    """

    settings: GenerationSettings
    given: Sequence[GivenPixels]
    num_steps = 0

    def run(self, pipe: Sampler, steps: CallSteps, text: TextEmbeddings, before: Tensor | None) -> Tensor:
        """See `Pass.run`."""
        assert before is not None
        steps.emit(Decoding())
        return renew_known(pipe.coder(self.settings), before, self.given)


@dataclass(frozen=True, eq=False)
class Call:
    """A planned call.

    Attributes:
        passes: run in order.
        settings: of the call: what was asked for, and how frames are given out.
        given: the conditions at the size asked for, to be pasted into the frames.
    """

    passes: Sequence[Pass | Reencoding]
    settings: GenerationSettings
    given: Sequence[GivenPixels]

    @property
    def num_steps(self) -> int:
        """Denoising steps of all passes."""
        return sum(one.num_steps for one in self.passes)

    @property
    def needs_negative(self) -> bool:
        """Whether any pass uses the negative prompt."""
        return any(one.guidance.needs_negative for one in self.passes if isinstance(one, Pass))

    def run(self, pipe: Sampler, steps: CallSteps, text: TextEmbeddings) -> Tensor:
        """Run the passes in order; every one of them starts with copies of the embeddings, one entry per prompt."""
        latents: Tensor | None = None
        for one in self.passes:
            latents = one.run(pipe, steps, text.repeated(one.settings.num_videos_per_prompt), latents)
        assert latents is not None
        return latents
