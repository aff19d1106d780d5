"""Squared error by motion and sigma: `python docs/scripts/motion_errors.py FOLDER`, see docs/training.md.

Clips of tier 2's training split far behind those that a recipe draws, the same noise for every model.
"""

from __future__ import annotations

import argparse
from itertools import count, islice

import numpy as np
import torch

from vgen.pipelines import TextToVideoPipeline
from vgen.training.data.captioned import tokenize
from vgen.training.data.latents import encode_clips
from vgen.training.data.sprites.world import SpriteClip, SpriteWorld
from vgen.training.objectives.flow.tasks import FlowInputs

MOTIONS = ("left", "bounce", "circle", "zigzag", "then", "rotate", "change")
SIGMAS = (0.95, 0.88, 0.8, 0.7)
FIRST = 1_000_000  # with emphasis, a recipe draws from 32 times as many clips as it caches


@torch.no_grad()
def errors(pipeline: TextToVideoPipeline, clips: list[SpriteClip]) -> list[float]:
    """Mean squared error of the latents predicted from a noised clip and its caption, for every sigma."""
    rate = clips[0].frame_rate
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    latents = torch.cat([encode_clips(pipeline.vae, part)["latents"] for part in frames.split(16)])
    text = tokenize(
        pipeline.tokenizer, [clip.caption for clip in clips], pipeline.config.defaults["max_sequence_length"]
    )
    mask = text["attention_mask"].bool()
    embeds = pipeline.text_encoder(text["input_ids"], attention_mask=mask)[0]
    patch = pipeline.transformer.config.patch_size
    shape = (len(clips), latents.shape[2:].numel() // patch**2, latents.shape[1] * patch**2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    found = []
    for sigma in SIGMAS:
        inputs = FlowInputs(latents, [], torch.full((len(clips),), sigma), noise, pipeline.vae.strides, rate, patch)
        velocity = pipeline.transformer(
            inputs.hidden_states,
            embeds,
            inputs.timestep,
            encoder_attention_mask=mask,
            video_coords=inputs.coordinates[:1],
            return_dict=False,
        )[0]
        found.append(float(inputs.errors(velocity).mean()) * sigma**2)  # clean = noisy - sigma * velocity
    return found


def main() -> None:
    """Print a row a motion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sprites")
    parser.add_argument("--clips", type=int, default=96)
    arguments = parser.parse_args()
    pipeline = TextToVideoPipeline.from_pretrained(arguments.model)
    world = SpriteWorld("train", 2)
    print(f"{'sigma':8s}", *(f"{sigma:7.2f}" for sigma in SIGMAS))
    for motion in MOTIONS:
        places = (place for place in count(FIRST) if world.scene(place).key.objects[0].motion == motion)
        clips = [world.sample(place) for place in islice(places, arguments.clips)]
        print(f"{motion:8s}", *(f"{error:7.3f}" for error in errors(pipeline, clips)), flush=True)


if __name__ == "__main__":
    main()
