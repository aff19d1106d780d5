"""Models of a scenario with random weights (nothing is downloaded), and the same weights in the peer's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from vgen.bench.scenarios import ARCHITECTURES, SCHEDULER, Scenario
from vgen.engine.device import DTYPES
from vgen.errors import RequestError
from vgen.hub.find import resolve_model
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.text.encoder import PreTrainedTokenizerBase, T5EncoderModel, load_text_encoder


@dataclass
class Components:
    """What a pipeline is made of, ours or diffusers'; without a text encoder, prompt embeddings stand in."""

    transformer: Any
    vae: Any
    scheduler: FlowMatchEulerDiscreteScheduler
    text_encoder: T5EncoderModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    convention: str = "ltx"


def build(scenario: Scenario, device: torch.device, seed: int = 0) -> Components:
    """Our models of a scenario, in evaluation mode.

    Args:
        scenario: its `config` is a name of ARCHITECTURES, or else a model that vgen can load.
        device: where they go.
        seed: of random weights.
    Raises:
        RequestError: no such configuration or model.
    """
    dtype = DTYPES[scenario.dtype]
    if scenario.config not in ARCHITECTURES:
        pipeline = TextToVideoPipeline.from_pretrained(resolve_model(scenario.config), torch_dtype=dtype).to(device)
        parts = (pipeline.transformer, pipeline.vae, pipeline.scheduler, pipeline.text_encoder, pipeline.tokenizer)
        return Components(*parts, pipeline.config.convention)
    architecture = ARCHITECTURES[scenario.config]
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        transformer, vae = VideoDiT(**architecture.transformer), CausalVideoVAE(**architecture.vae)
    for model in (transformer, vae):
        _give_weights(model, device, dtype, generator)
    vae.latents_mean.zero_()
    vae.latents_std.fill_(1.0)
    text_encoder = tokenizer = None
    if architecture.text is not None:
        _, tokenizer = load_text_encoder(Path(resolve_model("sprites")), None)
        config = T5EncoderModel.config_class(**{**architecture.text, "vocab_size": len(tokenizer)})
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            text_encoder = T5EncoderModel(config).eval().to(device, dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    return Components(transformer, vae, scheduler, text_encoder, tokenizer)


@torch.no_grad()
def _give_weights(model: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Random weights that keep activations near one: speed must not be measured on zeros, nor error on noise."""
    model.to_empty(device=device)
    nn.Module.to(model, dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "table" not in name:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif "multiplier" in name:
            parameter.fill_(1000.0)
        else:
            parameter.normal_(0.0, 0.05, generator=generator)
    model.eval()


def peer_components(ours: Components) -> Components:
    """The same weights, not copied, in diffusers' classes."""
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    return Components(
        _twin(LTXVideoTransformer3DModel, ours.transformer),
        _twin(AutoencoderKLLTXVideo, ours.vae),
        FlowMatchEulerDiscreteScheduler.from_config(ours.scheduler.config),
        ours.text_encoder,
        ours.tokenizer,
    )


def _twin(cls: Any, model: Any) -> nn.Module:
    known = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    for key, default in model._optional_config_keys.items():  # what only we have
        value = known.pop(key)
        if value not in (default, list(default) if isinstance(default, tuple) else default):
            raise RequestError(f"against=diffusers: the model's {key}={value!r} does not exist there; compare another.")
    with torch.device("meta"):
        twin = cls(**known)
    twin.load_state_dict(dict(model.state_dict()), assign=True)
    return twin.eval()
