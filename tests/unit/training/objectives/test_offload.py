"""Fine-tuning with the frozen blocks on the host: the same losses and gradients, to the bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vgen.bench.scenarios import ARCHITECTURES
from vgen.engine.memory.offload import offload_of, resident_bytes, weight_bytes
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.pipelines import TextToVideoPipeline
from vgen.training.cost.rehearsal import transformer_memory
from vgen.training.fine_tune.presets import FineTune, fit_memory
from vgen.training.objectives.flow.build import check_offload, fine_tuned
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig
from vgen.training.objectives.flow.material import FootageMaterial


def _trained(folder: Path, **choices: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps, and the LoRA afterwards."""
    pipeline = TextToVideoPipeline.from_pretrained(folder)
    source: Any = SimpleNamespace(frame_rate=lambda indices: 8.0)
    config = FineTuneObjectiveConfig(kind="finetune", model="tiny", **choices)
    material = FootageMaterial(config, source, pipeline.vae.strides)
    objective = fine_tuned(config, pipeline, material, None, 0)  # type: ignore[arg-type]
    assert (offload_of(objective.transformer) is not None) == config.offload
    objective.to("cpu")  # as accelerate does, once the blocks are away
    generator = torch.Generator().manual_seed(0)
    batch = {
        "latents": torch.randn(1, 8, 3, 2, 2, generator=generator),
        "indices": torch.zeros(1, dtype=torch.long),
        "prompt_embeds": torch.randn(1, 4, 32, generator=generator),
        "prompt_attention_mask": torch.ones(1, 4, dtype=torch.bool),
    }
    noise = torch.randn(1, 12, 8, generator=generator)
    optimizer = torch.optim.SGD([v for v in objective.parameters() if v.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        loss = objective.errors(batch, [], torch.full((1,), 0.5), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.clone() for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same_to_the_bit(ltx_folders: dict[str, Path], checkpointing: bool) -> None:
    plain, expected = _trained(ltx_folders["0.9.5"], gradient_checkpointing=checkpointing)
    losses, made = _trained(ltx_folders["0.9.5"], gradient_checkpointing=checkpointing, offload=True)
    assert losses == plain
    assert len(set(plain)) == 3  # something was learnt
    assert made.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in made.items())


def test_what_cannot_be_combined_is_refused() -> None:
    for choices, message in (({"mode": "full"}, "mode=full trains all"), ({"base_weights": "int8"}, "cannot be comb")):
        with pytest.raises(ValidationError, match=message):
            FineTuneObjectiveConfig(kind="finetune", model="tiny", offload=True, **choices)
    recipe: Any = SimpleNamespace(sharding="fsdp")
    with pytest.raises(RequestError, match="works in one process, and this run has 1 with sharding=fsdp"):
        check_offload(recipe)


def test_the_estimate_counts_two_blocks() -> None:
    config = ARCHITECTURES["ltx-50m"].transformer
    whole, away = (transformer_memory(config, batch=1, tokens=64, rank=4, offload=offload) for offload in (False, True))
    with torch.device("meta"):
        model = VideoDiT(**config)
    torch.nn.Module.to(model, torch.bfloat16)
    spared = weight_bytes(model) - resident_bytes(model, model.transformer_blocks)
    assert spared > 0.6 * weight_bytes(model)
    assert whole.weights - away.weights == spared
    assert whole._replace(weights=0) == away._replace(weights=0)


def test_a_preset_offloads_where_8_bits_are_not_enough() -> None:
    def measure(asked: FineTune) -> int:
        return int(4e9 if asked.offload else 12e9 if asked.base_weights == "int8" else 20e9)

    assert fit_memory(FineTune(), "16gb", measure).base_weights == "int8"
    small = fit_memory(FineTune(), "8gb", measure)
    assert (small.offload, small.base_weights) == (True, "keep")
    with pytest.raises(RequestError, match="preset=8gb"):  # what was asked for stays
        fit_memory(FineTune(base_weights="int8"), "8gb", measure)
