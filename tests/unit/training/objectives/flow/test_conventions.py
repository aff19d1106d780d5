"""Fine-tuning calls the transformer as sampling does, task by task, also for models whose conventions differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vgen.diffusion.conditions import KnownLatents
from vgen.pipelines import ImageToVideoPipeline, MaskedPredictionPipeline, TextToVideoPipeline
from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.training.objectives.flow.build import fine_tuned
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig
from vgen.training.objectives.flow.material import FootageMaterial

SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0}


@pytest.mark.parametrize("task", ["text", "first", "last", "prefix"])
def test_coordinates_are_those_of_sampling(ltx_folders: dict[str, Path], task: str) -> None:
    pipeline = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    seen: list[torch.Tensor] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["video_coords"]), with_kwargs=True
    )
    common = {**SIZE, "prompt": "a", "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    picture = np.zeros((64, 64, 3), np.uint8)
    if task == "text":
        pipeline(**common)
    elif task == "first":
        ImageToVideoPipeline(**pipeline.components)(image=picture, **common)
    else:
        given = VideoCondition(picture, 16) if task == "last" else VideoCondition(np.stack([picture] * 9), 0)
        MaskedPredictionPipeline(**pipeline.components)(conditions=given, **common)
    config = FineTuneObjectiveConfig(kind="finetune", model="tiny")
    source: Any = SimpleNamespace(frame_rate=lambda indices: SIZE["frame_rate"])
    material = FootageMaterial(config, source, pipeline.vae.strides)
    objective = fine_tuned(config, pipeline, material, None, 0)  # type: ignore[arg-type]
    latents = torch.zeros(1, 8, 3, 2, 2)
    known = {
        "text": [],
        "first": [KnownLatents(latents[:, :, :1])],
        "prefix": [KnownLatents(latents[:, :, :2])],
        "last": [KnownLatents(latents[:, :, :1], frame_index=16)],
    }[task]
    batch = {
        "latents": latents,
        "indices": torch.zeros(1, dtype=torch.long),
        "prompt_embeds": torch.zeros(1, 4, 32),
        "prompt_attention_mask": torch.ones(1, 4, dtype=torch.bool),
    }
    objective.errors(batch, known, torch.full((1,), 0.5), torch.zeros(1, 12, 8), task=task)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0])
