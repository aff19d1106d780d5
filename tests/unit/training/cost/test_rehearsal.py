"""What training costs, told beforehand, against what is counted while it is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vgen.engine.memory.rehearsal import LiveBytes
from vgen.models import VideoDiT
from vgen.training.cost.rehearsal import MemoryEstimate, memory_of, peak_bytes, transformer_memory
from vgen.training.cost.work import count_work

CONFIG: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3,
    "cross_attention_dim": 24, "caption_channels": 8, "rope_base_size": [4, 32, 32],
}  # fmt: skip
TOKENS = 60


def _model() -> VideoDiT:
    model = VideoDiT(**CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def _inputs(batch: int) -> dict[str, Tensor]:
    return {
        "latents": torch.randn(batch, TOKENS, 16),
        "text": torch.randn(batch, 7, 8),
        "timestep": torch.full((batch,), 500.0),
        "mask": torch.ones(batch, 7, dtype=torch.bool),
        "coordinates": torch.rand(1, 3, TOKENS),
    }


def _loss(model: VideoDiT, given: Any) -> Tensor:
    return (
        model(
            given["latents"], given["text"], given["timestep"], encoder_attention_mask=given["mask"],
            video_coords=given["coordinates"], return_dict=False,
        )[0]
        .float()
        .square()
        .mean()
    )  # fmt: skip


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_rehearsal_counts_what_a_real_step_holds(bfloat16: bool, checkpointing: bool) -> None:
    model, inputs = _model(), _inputs(4)
    if checkpointing:
        model.enable_gradient_checkpointing()
    told = peak_bytes(model, lambda given: _loss(model, given), inputs, bfloat16=bfloat16)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = _loss(model, inputs)
        loss.backward()
    assert told == pytest.approx(live.peak, rel=0.02)
    assert all(value.device.type == "cpu" for value in model.parameters())


def _flops(*arguments: Any) -> int:
    return count_work(*arguments).total_flops


def test_operations_of_a_transformer_are_six_a_weight_and_token_and_its_attention() -> None:
    model, inputs = _model(), _inputs(4)
    flops = _flops(model, lambda given: _loss(model, given), inputs)
    block = sum(value.numel() for value in model.transformer_blocks.parameters() if value.ndim == 2)
    attention = 3 * 3 * 4 * 2 * 2 * TOKENS * (TOKENS + 7) * 24
    assert flops == pytest.approx(6 * block * 4 * TOKENS + attention, rel=0.25)
    assert _flops(model, lambda given: _loss(model, given), _inputs(8)) == pytest.approx(2 * flops, rel=0.05)


def test_checkpointing_repeats_the_forward_and_holds_less() -> None:
    model, inputs = _model(), _inputs(8)
    plain = [f(model, lambda given: _loss(model, given), inputs) for f in (_flops, peak_bytes)]
    model.enable_gradient_checkpointing()
    less = [f(model, lambda given: _loss(model, given), inputs) for f in (_flops, peak_bytes)]
    assert less[0] == pytest.approx(plain[0] * 4 / 3, rel=0.1)
    assert less[1] < 0.6 * plain[1]


def test_parts_of_the_memory() -> None:
    parameters = [torch.nn.Parameter(torch.empty(100, 10)), torch.empty(500, dtype=torch.bfloat16)]
    estimate = memory_of(parameters, 20_000)
    assert estimate == MemoryEstimate(4000 + 1000, 4000, 8000, 4000, 16_000, 0)
    assert estimate.total == 37_000
    assert memory_of(parameters, 20_000, optimizer="muon").optimizer == 4000
    assert memory_of(parameters, 20_000, optimizer="adamw8bit", ema=False)[2:4] == (2000, 0)
    assert memory_of(parameters, 20_000, frozen_bytes=1.0).weights == 4500
    sharded = memory_of(parameters, 20_000, processes=4, sharded=True)
    assert sharded[:4] == (1250, 1000, 2000, 1000) and sharded.workspace == 0
    assert memory_of(parameters, 20_000, processes=4).workspace == 4000
    assert memory_of(parameters, 4000).workspace == 4000


def test_presets_of_a_transformer() -> None:
    full = transformer_memory(CONFIG, batch=2, tokens=TOKENS, text_tokens=7)
    lora = transformer_memory(CONFIG, batch=2, tokens=TOKENS, text_tokens=7, rank=4)
    small = transformer_memory(CONFIG, batch=2, tokens=TOKENS, text_tokens=7, rank=4, frozen_bytes=0.56)
    wide = transformer_memory(CONFIG, batch=2, tokens=TOKENS, text_tokens=7, rank=8)
    count = sum(value.numel() for value in _model().parameters())
    assert full.weights == 4 * count and full.optimizer == 8 * count
    assert lora.optimizer < full.optimizer / 4 and wide.optimizer == 2 * lora.optimizer
    assert lora.gradients == lora.optimizer // 2
    assert small.weights == pytest.approx(0.56 * count + lora.gradients, rel=0.01)
    assert small.workspace > lora.workspace
    checkpointed = transformer_memory(CONFIG, batch=2, tokens=TOKENS, text_tokens=7, rank=4, checkpointing=True)
    assert checkpointed.activations < 0.6 * lora.activations
