"""Where pairs come from: the model's own clips, which a judge calls right or wrong, or a user's file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vgen.diffusion.tokens import unpack
from vgen.errors import MediaError, RequestError, counted
from vgen.io.content_hash import tree_hash
from vgen.io.media.images import fit_image
from vgen.io.media.video import read_video
from vgen.pipelines import TextToVideoPipeline
from vgen.request.settings import UNDRAFTED
from vgen.training.control import Control
from vgen.training.data.clips import to_pixels
from vgen.training.data.prompts import SpritePrompts
from vgen.training.data.shards import CachingCosts
from vgen.training.judge.judge import score
from vgen.training.objectives.preference.config import PairsConfig
from vgen.training.precision import computes_bfloat16
from vgen.training.randomness import generator

_NAMES = ("prompt", "chosen", "rejected")


class ClipMaker:
    """What a pipeline makes of prompts: finished latents and frames.

    Args:
        pipeline: of any folder; its defaults say size and frame rate, and what the caller leaves out.
        config: steps, guidance and number format.
    """

    def __init__(self, pipeline: TextToVideoPipeline, config: PairsConfig) -> None:
        steps, scale = config.num_inference_steps, config.guidance_scale
        asked = {"prompt": "", "num_frames": config.num_frames, "num_inference_steps": steps, "guidance_scale": scale}
        self.pipeline = pipeline
        self.settings = pipeline.fill_settings({name: value for name, value in asked.items() if value is not None})
        self.shape, _ = pipeline.check_inputs(self.settings)
        self.bfloat16 = config.dtype == "bfloat16"

    def describe(self) -> str:
        """What decides a clip besides the weights, the prompt and the noise."""
        settings = self.settings
        size = (settings.num_frames, settings.height, settings.width, settings.frame_rate, settings.max_sequence_length)
        way = (
            settings.num_inference_steps,
            settings.guidance_scale,
            settings.guidance_rescale,
            settings.negative_prompt,
        )
        return f"{size}|{way}|{self.bfloat16}"

    @torch.no_grad()
    def make(self, prompts: list[str], sources: list[torch.Generator], control: Control) -> tuple[Tensor, np.ndarray]:
        """A clip of each prompt.

        Args:
            prompts: B of them.
            sources: of the noise, one per clip.
            control: asked at every step whether to stop.
        Returns:
            Latents [B, C, f, h, w], normalised, float32 on the CPU; frames uint8 [B, F, H, W, 3].
        Raises:
            StopRequested: asked to stop.
        """
        ends: list[Tensor] = []

        def keep(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
            control.poll()
            ends[:] = [tensors["latents"]]
            return {}

        settings, device = self.settings, self.pipeline._execution_device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16 and computes_bfloat16(device)):
            made = self.pipeline(
                prompts,
                num_frames=settings.num_frames,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                **UNDRAFTED,  # both clips of a pair are to be of text to video, as it is trained
                generator=sources,
                output_type="uint8",
                callback_on_step_end=keep,
            ).frames
        return unpack(ends[-1].float(), self.shape, self.pipeline.patch_size).cpu(), np.asarray(made)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] and mask bool [B, L] of prompts, on the CPU."""
        encoded = self.pipeline.encode_prompt(
            prompts,
            self.settings.negative_prompt,
            max_sequence_length=self.settings.max_sequence_length,
            device=self.pipeline._execution_device,
        )
        return encoded.prompt_embeds.float().cpu(), encoded.prompt_attention_mask.bool().cpu()

    def encoding_seconds(self, costs: CachingCosts) -> float:
        """To encode one clip; decoding one takes about as long."""
        settings = self.settings
        return costs.encoding(self.pipeline.vae, settings.num_frames, (settings.height, settings.width))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Clips uint8 [B, F, H, W, 3] to normalised latents [B, C, f, h, w], float32 on the CPU."""
        vae = self.pipeline.vae
        latents = vae.encode(to_pixels(frames.to(self.pipeline._execution_device)).to(vae.dtype)).latent_dist.mode()
        return vae.normalize(latents.float()).cpu()


class JudgedPairs:
    """The model's own clips of SpriteWorld's prompts; one that the judge calls right is preferred to one that is wrong.

    Every clip of a prompt that has both kinds is in a pair; those of the rarer kind are in several.

    Args:
        config: clips a prompt.
        prompts: of a split, complete: the judge needs all that it looks for to be said.
        maker: makes the clips.
        seed: of the noise.
        count: prompts.
    """

    def __init__(self, config: PairsConfig, prompts: SpritePrompts, maker: ClipMaker, seed: int, count: int) -> None:
        self.config = config
        self.prompts = prompts
        self.maker = maker
        self.seed = seed
        self.count = count

    @property
    def fingerprint(self) -> str:
        """Of prompts, noise and way of choosing."""
        return f"{self.prompts.fingerprint}|{self.seed}|{self.config.clips}|{self.config.rendered}"

    def prompt(self, place: int) -> str:
        """The text at a place."""
        return self.prompts.text(place, self.config.num_frames)

    def is_right(self, place: int, frames: np.ndarray) -> bool:
        """Whether a clip, uint8 [F, H, W, 3], shows all that the prompt at a place says."""
        return score(frames, self.prompts.key(place, self.config.num_frames)).joint

    def pairs(self, places: range, control: Control) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """See PairSource."""
        jobs = [(place, clip) for place in places for clip in range(self.config.clips)]
        right: dict[int, list[Tensor]] = {place: [] for place in places}
        wrong: dict[int, list[Tensor]] = {place: [] for place in places}
        for begin in range(0, len(jobs), self.config.batch):
            part = jobs[begin : begin + self.config.batch]
            sources = [generator(self.seed, "pair", place, clip) for place, clip in part]
            latents, clips = self.maker.make([self.prompt(place) for place, _ in part], sources, control)
            for (place, _), latent, frames in zip(part, latents, clips, strict=True):
                (right if self.is_right(place, frames) else wrong)[place].append(latent)
        texts, chosen, rejected = [], [], []
        for place in places:
            if self.config.rendered and not right[place]:
                right[place].append(self._rendered(place))
            better, worse = right[place], wrong[place]
            for number in range(max(len(better), len(worse)) if better and worse else 0):
                texts.append(self.prompt(place))
                chosen.append(better[number % len(better)])
                rejected.append(worse[number % len(worse)])
        return texts, chosen, rejected

    def counted_seconds(self, costs: CachingCosts) -> float:
        """See PairSource."""
        settings, length = self.maker.settings, self.config.num_frames
        steps = settings.num_inference_steps * (1 if settings.guidance_scale == 1 else 2)
        return self.config.clips * (steps * costs.forward(length) + self.maker.encoding_seconds(costs))

    def _rendered(self, place: int) -> Tensor:
        return self.maker.encode(self.prompts.clips.stack([place], self.config.num_frames)["frames"])[0]


class PairFile:
    """A user's pairs: the middle of each clip in the model's shape and size, and its first `num_frames` frames.

    Args:
        lines: of `read_pair_file`.
        maker: encodes the clips.
    """

    def __init__(self, lines: list[dict[str, str]], maker: ClipMaker) -> None:
        self.maker = maker
        self.lines = lines
        self.count = len(lines)

    @property
    def fingerprint(self) -> str:
        """Of the lines, their clips by content."""
        clips = ("chosen", "rejected")
        named = [{**line, **{clip: tree_hash(Path(line[clip])) for clip in clips}} for line in self.lines]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def pairs(self, places: range, control: Control) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """See PairSource."""
        texts, chosen, rejected = [], [], []
        for line in self.lines[places.start : places.stop]:
            control.poll()
            texts.append(line["prompt"])
            chosen.append(self._encode(Path(line["chosen"])))
            rejected.append(self._encode(Path(line["rejected"])))
        return texts, chosen, rejected

    def counted_seconds(self, costs: CachingCosts) -> float:
        """See PairSource."""
        return 2 * self.maker.encoding_seconds(costs)

    def _encode(self, path: Path) -> Tensor:
        settings = self.maker.settings
        frames = read_video(path, max_frames=settings.num_frames).frames
        if len(frames) < settings.num_frames:
            raise MediaError(
                f"{path} has {counted(len(frames), 'frame')}, and objective.pairs.num_frames is {settings.num_frames}: "
                "give longer clips, or a smaller number."
            )
        size = (settings.height, settings.width)
        sized = np.stack([np.asarray(fit_image(Image.fromarray(frame), *size)) for frame in frames])
        return self.maker.encode(torch.from_numpy(sized)[None])[0]


def read_pair_file(path: Path) -> list[dict[str, str]]:
    """The JSON lines {"prompt", "chosen", "rejected"} of a file, paths of clips (relative to the file) made absolute.

    Raises:
        RequestError: the file cannot be read, a line is no such object, or a clip is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"objective.pairs.file={str(path)!r} cannot be read: {error}; give JSON lines.") from None
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: {error}; each line is one JSON object.") from None
        if not isinstance(entry, dict) or not all(isinstance(entry.get(n), str) for n in _NAMES):
            raise RequestError(f"{path}, line {number}: it must be an object with the texts {', '.join(_NAMES)}.")
        pair = {"prompt": entry["prompt"]}
        for name in _NAMES[1:]:
            pair[name] = str((path.parent / entry[name]).resolve())
            if not Path(pair[name]).exists():
                raise RequestError(f"{path}, line {number}: {name}={entry[name]!r} is not there, at {pair[name]}.")
        found.append(pair)
    if not found:
        raise RequestError(f"objective.pairs.file={str(path)!r} holds no pair: give one per line.")
    return found
