"""The timesteps that a loop announces are those that it asks for, to the bit."""

from __future__ import annotations

import pytest
import torch

from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_clip_embeds_its_timesteps_once(make_native_components, conditioned):
    kind = MaskedPredictionPipeline if conditioned else TextToVideoPipeline
    pipeline = kind(**make_native_components())
    pipeline.set_progress_bar_config(disable=True)
    asked, embedded = [], []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, inputs, values: asked.append(values["timestep"].flatten()), with_kwargs=True
    )
    pipeline.transformer.time_embed.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    call = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "guidance_scale": 2.0}
    if conditioned:
        image = torch.rand(1, 3, 32, 32)
        call["conditions"] = [VideoCondition(image, 0), VideoCondition(image, 8, strength=0.4)]
    pipeline(**call, num_inference_steps=3, max_sequence_length=8, output_type="latent")
    assert len(asked) == 3
    assert len(embedded) == 1
    assert torch.equal(embedded[0], torch.cat(asked).unique())
