"""What is run: a model, a size, a number of steps. Named scenarios, and the architectures they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from vgen.errors import RequestError
from vgen.io.weights.ltx_configs import scheduler_from_original
from vgen.io.weights.ltx_keys import SPACE_TO_DEPTH_BLOCK
from vgen.io.weights.ltx_sniff import sniff_scheduler
from vgen.types import VideoShape

_VAE_095: Final[dict[str, Any]] = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": (SPACE_TO_DEPTH_BLOCK,) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_THIN_095: Final[dict[str, Any]] = {
    **_VAE_095, "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 4
}  # fmt: skip


STAGES = ("text_encode", "step", "denoise", "decode", "to_host", "end_to_end")
"""What can be timed, in the order of a clip's way."""
_LARGE = ("ltx-2b", "ltx-2b-0.9.0", "ltx-13b")
SCHEDULER: Final = scheduler_from_original(sniff_scheduler("0.9.0"))
"""Of all of them: its shift grows with the number of tokens."""


@dataclass(frozen=True)
class Architecture:
    """Configurations of the models.

    Attributes:
        transformer: of VideoDiT.
        vae: of CausalVideoVAE, where it differs from that of 0.9.0.
        text: of T5EncoderModel; None where prompt embeddings stand in for a text encoder.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any] | None = None


def _transformer(heads: int, head_dim: int, layers: int, text: int, latents: int = 128) -> dict[str, Any]:
    return {
        "in_channels": latents,
        "out_channels": latents,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
        "num_layers": layers,
        "caption_channels": text,
    }


def _text(width: int, layers: int, feed_forward: int) -> dict[str, Any]:
    heads = width // 64 or 1
    size = {"d_model": width, "d_kv": width // heads, "d_ff": feed_forward, "num_layers": layers, "num_heads": heads}
    return {"vocab_size": 384, **size}


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "tiny": Architecture(
        _transformer(2, 12, 2, 32, latents=8),
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 16, 16),
            "decoder_block_out_channels": (8, 8, 16, 16),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
        },
        _text(32, 2, 37),
    ),
    "ltx-50m": Architecture(
        _transformer(8, 64, 8, 512),
        {
            "block_out_channels": (32, 64, 128, 128),
            "decoder_block_out_channels": (32, 64, 128, 128),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
        },
        _text(512, 3, 1024),
    ),
    "ltx-50m-095": Architecture(
        _transformer(8, 64, 8, 512),
        {
            **_THIN_095,
            "block_out_channels": (8, 16, 32, 64, 128),
            "decoder_block_out_channels": (32, 64, 128),
        },
        _text(512, 3, 1024),
    ),
    "ltx-2b": Architecture(_transformer(32, 64, 28, 4096), _VAE_095),
    "ltx-2b-0.9.0": Architecture(_transformer(32, 64, 28, 4096), {}),
    "ltx-13b": Architecture(_transformer(32, 128, 48, 4096), _VAE_095),
}
"""By the name that `--config` takes. LTX's sizes are those of its public configurations; weights are random."""


@dataclass(frozen=True)
class Scenario:
    """One piece of work.

    Attributes:
        name: for the report.
        config: a name of ARCHITECTURES, or a model folder (or the name of the embedded model).
        height, width, num_frames: pixels and pixel frames.
        num_inference_steps: denoising steps.
        guidance_scale: 1 is without.
        text_tokens: length of the text.
        prompt_tokens: of those, how many are not padding (where embeddings stand in for a text encoder).
        dtype: "float32", "bfloat16" or "float16".
        threads: of the CPU; None leaves torch's own number.
    """

    name: str
    config: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    text_tokens: int = 128
    prompt_tokens: int = 40
    dtype: str = "float32"
    threads: int | None = None
    frame_rate: int = 25

    @property
    def shape(self) -> VideoShape:
        """Of the clip."""
        return VideoShape(self.num_frames, self.height, self.width)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def _gpu(name: str, config: str, size: tuple[int, int, int], steps: int, guidance: float) -> Scenario:
    return Scenario(name, config, *size, steps, guidance, dtype="bfloat16")


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario("cpu-tiny", "tiny", 64, 96, 17, 3, 3.0, text_tokens=32),
        Scenario("cpu-50m", "ltx-50m", 256, 384, 49, 4, 3.0, threads=2),
        Scenario("cpu-50m-095", "ltx-50m-095", 256, 384, 49, 4, 3.0, threads=2),
        Scenario("cpu-sprites", "sprites", 64, 64, 17, 8, 3.0, text_tokens=32, frame_rate=8),
        _gpu("ltx-2b", "ltx-2b", (512, 768, 121), 20, 1.0),
        _gpu("ltx-2b-cfg", "ltx-2b", (512, 768, 121), 20, 3.0),
        _gpu("ltx-2b-8", "ltx-2b", (512, 768, 121), 8, 1.0),
        _gpu("ltx-2b-hd", "ltx-2b", (704, 1216, 121), 8, 1.0),
        _gpu("ltx-2b-long", "ltx-2b", (480, 704, 161), 20, 3.0),
        _gpu("ltx-2b-small", "ltx-2b", (256, 256, 9), 20, 1.0),
        _gpu("ltx-13b", "ltx-13b", (512, 768, 121), 20, 1.0),
    )
}


def scenario_named(name: str, **changes: Any) -> Scenario:
    """A named scenario with some of its values changed.

    Args:
        name: of SCENARIOS.
        **changes: fields of Scenario; None keeps the value.
    Raises:
        RequestError: there is no such scenario.
    """
    if name not in SCENARIOS:
        raise RequestError(f"scenario={name!r} is not known: use one of {', '.join(SCENARIOS)}.")
    return replace(SCENARIOS[name], **{key: value for key, value in changes.items() if value is not None})


def choose_scenario(name: str | None, device: str, changes: Mapping[str, Any]) -> Scenario:
    """The scenario asked for, or the one that suits a device, with some values changed.

    Args:
        name: of a scenario; None: ltx-2b on a GPU, cpu-50m elsewhere.
        device: "cpu", "cuda" ...
        changes: fields of Scenario; None keeps the value.
    Raises:
        RequestError: no such scenario, a size that no clip can have, or an unknown dtype.
    """
    on_cpu = not device.startswith("cuda")
    default = "cpu-50m" if on_cpu else "ltx-2b"
    given = dict(changes)
    if name is None and on_cpu and given.get("config") in _LARGE:  # the sizes of cpu-50m take minutes with those
        default = "cpu-tiny"
    if name is None and given.get("config") in ARCHITECTURES and "text_tokens" not in given:
        given["text_tokens"] = 128
    scenario = scenario_named(name or default, **given)
    from vgen.engine.device import DTYPES

    if scenario.dtype not in DTYPES:
        raise RequestError(f"dtype={scenario.dtype!r} is not known: use {', '.join(DTYPES)}.")
    for field in ("height", "width", "num_frames", "num_inference_steps"):
        if getattr(scenario, field) < 1:
            raise RequestError(f"{field}={getattr(scenario, field)} must be at least 1.")
    return scenario


def choose_stages(words: str | None) -> tuple[str, ...]:
    """The stages of a list like "step,end_to_end"; None: all.

    Raises:
        RequestError: one of them does not exist.
    """
    if words is None:
        return STAGES
    stages = tuple(words.replace(",", " ").split())
    for stage in stages:
        if stage not in STAGES:
            raise RequestError(f"stages: {stage!r} is not known: use a list of {', '.join(STAGES)}.")
    return stages
