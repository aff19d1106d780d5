"""Losses that a mask weighs, against the same computed in numpy from the definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vgen.models import CausalVideoVAE, VideoDiT
from vgen.training.config.stages import Stage, TaskMix
from vgen.training.data.plan import Batch, BatchPlan
from vgen.training.objectives.flow.build import build_scheduler, fine_tuned
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.material import FootageMaterial
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.randomness import Keys

KEYS = Keys(3, 0)


def _tuned(vae: CausalVideoVAE, task: str, patch: int) -> FlowObjective:
    channels = 4 * patch**2
    torch.manual_seed(0)
    transformer = VideoDiT(
        in_channels=channels, out_channels=channels, caption_channels=8, num_attention_heads=2, attention_head_dim=12,
        cross_attention_dim=24, num_layers=1, rope_base_size=(4, 64, 64), patch_size=patch,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    shift: Any = SimpleNamespace(
        shift=SimpleNamespace(base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=4096), shift_terminal=None
    )
    pipeline: Any = SimpleNamespace(
        transformer=transformer, vae=vae, patch_size=patch, scheduler=build_scheduler(shift),
        model_convention=SimpleNamespace(causal_coordinates=True, prefix_latent_frames=None, conditions_name="vgen"),
    )  # fmt: skip
    tasks = TaskMix(**{"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0, task: 1.0})
    config = FineTuneObjectiveConfig(kind="finetune", model="x", mode="full", tasks=tasks)
    plan = BatchPlan([Stage(steps=1, frames={9: 1.0}, batch={9: 3})], 0)
    source: Any = SimpleNamespace(frame_rate=lambda indices: 8.0)
    return fine_tuned(config, pipeline, FootageMaterial(config, source, vae.strides), plan, 0)


def _tokens(values: np.ndarray, patch: int) -> np.ndarray:
    """[B, C, f, h, w] as [B, N, C p p], frame by frame, row by row: channels outermost inside a token."""
    batch, _, frames, height, width = values.shape
    tokens = []
    for frame in range(frames):
        for top in range(0, height, patch):
            for left in range(0, width, patch):
                part = values[:, :, frame, top : top + patch, left : left + patch]
                tokens.append(part.reshape(batch, -1))
    return np.stack(tokens, axis=1)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("task", ["text", "first"])
def test_a_mask_weighs_the_squared_error_of_its_tokens(tiny_vae: CausalVideoVAE, task: str, patch: int) -> None:
    """Sample 0: the left half counts, and less so in frame 2; 1: everything; 2: only what "first" has given already."""
    objective = _tuned(tiny_vae, task, patch)
    latents = torch.randn(3, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    weight = torch.ones(3, 1, 3, 4, 4)
    weight[0, :, :, :, 2:] = 0.0
    weight[0, :, 2, :2] *= 0.25
    weight[2, :, 1:] = 0.0
    batch: Batch = {
        "latents": latents, "weight": weight, "indices": torch.arange(3),
        "prompt_embeds": torch.randn(3, 5, 8), "prompt_attention_mask": torch.ones(3, 5, dtype=torch.bool),
    }  # fmt: skip
    made: list[torch.Tensor] = []
    objective.transformer.register_forward_hook(lambda module, args, output: made.append(output[0].detach()))
    with torch.no_grad():
        loss, _ = objective.loss(batch, KEYS)
        (velocity,) = made
        plain, _ = objective.loss({name: value for name, value in batch.items() if name != "weight"}, KEYS)
    tokens, per_token = 3 * (4 // patch) ** 2, 4 * patch**2
    noise = KEYS.normal("noise", (3, tokens, per_token)).numpy().astype(np.float64)
    errors = (velocity.numpy() - (noise - _tokens(latents.numpy(), patch))) ** 2
    weights = _tokens(weight.numpy(), patch).mean(axis=-1)
    if task == "first":
        weights[:, : tokens // 3] = 0.0
        weights[2, tokens // 3 :] = 1.0  # nothing that the mask counts is left: all that is to be made counts
    by_hand = (errors.mean(axis=-1) * weights).sum(axis=1) / weights.sum(axis=1)
    assert float(loss) == pytest.approx(by_hand.mean(), rel=1e-5)
    assert float(loss) != pytest.approx(float(plain), rel=1e-3), "the mask changes something here"


def test_objects_and_their_outline_weigh_more_in_the_loss_of_a_vae(tiny_vae: CausalVideoVAE) -> None:
    config = VaeObjectiveConfig(kind="vae", model=dict(tiny_vae.config), foreground_weight=9.0, square_weight=0.5)
    nothing: Any = None
    objective = VaeObjective(config, nothing, nothing, 0)
    frames = torch.randint(0, 256, (2, 5, 16, 16, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    masks = torch.zeros(2, 5, 16, 16, dtype=torch.bool)
    masks[0, :, 4:8, 5:9] = True
    masks[1, 2, 0, 0] = True
    made: list[torch.Tensor] = []
    objective.vae.decoder.register_forward_hook(lambda module, args, output: made.append(output.detach()))
    with torch.no_grad():
        _, logs = objective.loss({"frames": frames, "masks": masks, "indices": torch.arange(2)}, KEYS)
    weights = np.ones((2, 5, 16, 16))
    weights[0, :, 3:9, 4:10] = 9.0  # one pixel around, so that outlines count
    weights[1, 2, :2, :2] = 9.0
    video = frames.numpy().transpose(0, 4, 1, 2, 3) / 127.5 - 1
    difference = made[0].numpy().astype(np.float64) - video
    for name, values in (("l1", np.abs(difference)), ("square", difference**2)):
        by_hand = (values.mean(axis=1) * weights).sum() / weights.sum()
        assert float(logs[name]) == pytest.approx(by_hand, rel=1e-4)
