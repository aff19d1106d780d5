"""Who runs a scenario: ours, ours without some parts, and the peers. All get the same weights and the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vgen.bench import lossy
from vgen.bench.build import Components, build, peer_components
from vgen.bench.lossy import noise_tokens, prompts_of
from vgen.bench.scenarios import Scenario
from vgen.diffusion.tokens import pack
from vgen.engine.device import DTYPES
from vgen.engine.session import inference_session
from vgen.engine.speed.compile import compile_blocks
from vgen.errors import RequestError
from vgen.models.transformer.attention import attention_backends
from vgen.ops import switches
from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.coding.decode import to_output

_PROMPT = "a red ball moves slowly to the left across a blue background, and the camera follows it"
_NEGATIVE = "blurry, worst quality"


@dataclass
class Inputs:
    """What every arm is given."""

    latents: Tensor
    text: dict[str, Tensor]
    clean: Tensor
    decode_timestep: Tensor | None
    prompts: list[str] | None = None


@dataclass
class Arm:
    """A pipeline on a scenario, cut into stages.

    Attributes:
        name: in the report.
        pipeline: ours, or diffusers'.
        scenario: the work.
        inputs: the same for all arms.
        off: parts of our fast path that are turned off.
        compiled: what is compiled, for the report.
        settings: of its calls, in place of the scenario's.
        lossy: what changes results beyond rounding, by name; empty for exact arms.
    """

    name: str
    pipeline: Any
    scenario: Scenario
    inputs: Inputs
    off: tuple[str, ...] = ()
    compiled: str = ""
    lossy: tuple[str, ...] = ()
    ours: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    _calls: dict[str, Callable[[], Any]] = field(default_factory=dict)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, what this arm is made of is in force."""
        with switches.without(*self.off) if self.off else nullcontext(), torch.no_grad():
            yield

    def stage(self, name: str) -> Callable[[], Any] | None:
        """The work of a stage; None where this scenario does not have it."""
        if name == "text_encode" and self.pipeline.text_encoder is None:
            return None
        run = getattr(self, f"_{name}")

        def work() -> Any:
            with self.active():
                return run()

        return work

    def _arguments(self) -> dict[str, Any]:
        scenario = self.scenario
        arguments = {
            "height": scenario.height,
            "width": scenario.width,
            "num_frames": scenario.num_frames,
            "frame_rate": scenario.frame_rate,
            "num_inference_steps": scenario.num_inference_steps,
            "guidance_scale": scenario.guidance_scale,
            "max_sequence_length": scenario.text_tokens,
            "latents": self.inputs.latents,
            "generator": torch.Generator(self.inputs.latents.device).manual_seed(1),
            "decode_timestep": 0.05,
            "decode_noise_scale": 0.025,
        }
        return {**arguments, **self.settings}

    def _words(self) -> tuple[str, str]:
        """A prompt that the model knows, and a negative one."""
        return (self.inputs.prompts[0], "") if self.inputs.prompts else (_PROMPT, _NEGATIVE)

    def _text_encode(self) -> Any:
        guided = self.scenario.guidance_scale > 1
        return self.pipeline.encode_prompt(*self._words(), guided, 1, max_sequence_length=self.scenario.text_tokens)

    def _step(self) -> Tensor:
        """One forward of the transformer by itself, with nothing computed beforehand; guidance as a batch of two."""
        count = 2 if self.scenario.guidance_scale > 1 else 1
        text, dtype = self.inputs.text, self.pipeline.transformer.dtype
        latents = torch.cat([self.inputs.latents.to(dtype)] * count)
        known = self._coordinates()
        with self.pipeline.transformer.cache_context("step"):
            return self.pipeline.transformer(
                hidden_states=latents,
                encoder_hidden_states=torch.cat([text["prompt_embeds"], text["negative_prompt_embeds"]][:count]).to(
                    dtype
                ),
                timestep=torch.full((count,), 500.0, device=latents.device),
                encoder_attention_mask=torch.cat(
                    [text["prompt_attention_mask"], text["negative_prompt_attention_mask"]][:count]
                ),
                return_dict=False,
                **known,
            )[0]

    def _coordinates(self) -> dict[str, Any]:
        shape = self.inputs.clean.shape
        vae = self.pipeline.vae
        scale = (
            vae.temporal_compression_ratio / self.scenario.frame_rate,
            vae.spatial_compression_ratio,
            vae.spatial_compression_ratio,
        )
        patch = self.pipeline.transformer.config.patch_size
        size = {"num_frames": shape[2], "height": shape[3] // patch, "width": shape[4] // patch}
        return {**size, "rope_interpolation_scale": scale}

    def _denoise(self) -> Tensor:
        text = dict(self.inputs.text)
        if self.scenario.guidance_scale <= 1:
            text = {name: value for name, value in text.items() if not name.startswith("negative")}
        return self.pipeline(**self._arguments(), **text, output_type="latent", return_dict=False)[0]

    def clips(self, seed: int) -> Tensor:
        """Latents [P, C, f, h, w] of real prompts where there are any; the first noise is `seed`'s."""
        scenario, prompts = self.scenario, self.inputs.prompts
        vae, transformer = self.pipeline.vae, self.pipeline.transformer
        sizes = (vae.strides, vae.config.latent_channels, transformer.config.patch_size)
        noise = noise_tokens(scenario, *sizes, seed, len(prompts or "1")).to(self.inputs.latents)
        text: dict[str, Any] = dict(self.inputs.text)
        if prompts is not None:
            text = {"prompt": prompts, "negative_prompt": ""}
        with self.active():
            return self.pipeline(
                **{**self._arguments(), "latents": noise}, **text, output_type="latent", return_dict=False
            )[0].float()

    def decoded(self, latents: Tensor) -> Tensor:
        """Latents of `clips` as pixels in [0, 1]."""
        vae, timestep = self.pipeline.vae, self.inputs.decode_timestep
        with inference_session(self.pipeline), torch.no_grad():
            pixels = vae.decode(
                vae.denormalize(latents).to(vae.dtype),
                None if timestep is None else timestep.to(vae.dtype).expand(len(latents)),
                return_dict=False,
            )[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _decode(self) -> Tensor:
        with inference_session(self.pipeline) if self.ours else nullcontext():
            dtype, timestep = self.pipeline.vae.dtype, self.inputs.decode_timestep
            timestep = None if timestep is None else timestep.to(dtype)
            return self.pipeline.vae.decode(self.inputs.clean.to(dtype), timestep, return_dict=False)[0]

    def _to_host(self) -> Any:
        if "video" not in self._calls:
            video = self._decode().float()
            self._calls["video"] = lambda: video
        video, processor = self._calls["video"](), self.pipeline.video_processor
        # Ours works in place, so that later runs see other numbers; the work is the same.
        return to_output(video, "np", processor) if self.ours else processor.postprocess_video(video, output_type="np")

    def _end_to_end(self) -> Any:
        text: dict[str, Any] = self.inputs.text
        if self.pipeline.text_encoder is not None:
            text = dict(zip(("prompt", "negative_prompt"), self._words(), strict=True))
        return self.pipeline(**self._arguments(), **text, output_type="np", return_dict=False)[0]


def _lossy(way: str, components: Components, scenario: Scenario, inputs: Inputs) -> Arm:
    """Ours with one lossy way, on a transformer of its own that shares the weights."""
    fresh = _sharing(components.transformer)
    settings = lossy.settings_of(way)
    lossy.apply(way, fresh)
    pipeline = _our_pipeline(replace(components, transformer=fresh))
    pipeline.set_progress_bar_config(disable=True)
    text = {"prompt": inputs.prompts} if inputs.prompts else inputs.text
    pipeline.magnitudes = lossy.magnitudes_for(way, pipeline, scenario, text)
    return Arm(f"lossy:{way}", pipeline, scenario, inputs, lossy=(way,), settings=settings)


def _sharing(transformer: Any) -> Any:
    """Another transformer on the same weights."""
    with torch.device("meta"):
        fresh = type(transformer).from_config(transformer.config)
    fresh.load_state_dict(transformer.state_dict(), assign=True)
    return fresh.eval()


def make_inputs(scenario: Scenario, components: Components, device: torch.device, seed: int) -> Inputs:
    """Noise, text features and latents to decode, drawn once for all arms."""
    dtype = DTYPES[scenario.dtype]
    generator = torch.Generator(device).manual_seed(seed)
    vae, transformer = components.vae, components.transformer
    latent = scenario.shape.latent(vae.strides)
    channels = vae.config.latent_channels

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, device=device, generator=generator)

    text, length = {}, scenario.text_tokens
    for prefix, kept in (("", min(scenario.prompt_tokens, length)), ("negative_", min(8, length))):
        features = noise(1, length, transformer.config.caption_channels)
        text[f"{prefix}prompt_embeds"] = features.to(dtype)
        text[f"{prefix}prompt_attention_mask"] = (torch.arange(length, device=device) < kept)[None]
    timestep = None
    if vae.config.timestep_conditioning:
        timestep = torch.full((1,), 0.05, device=device, dtype=dtype)
    return Inputs(
        pack(noise(1, channels, *latent), transformer.config.patch_size),
        text,
        noise(1, channels, *latent),
        timestep,
        prompts_of(scenario),
    )


def make_arms(scenario: Scenario, against: tuple[str, ...], device: torch.device, seed: int) -> list[Arm]:
    """Ours first, then what it is compared with.

    Args:
        scenario: the work.
        against: "diffusers", "diffusers-compiled", "compiled" (ours), "plain" (all parts off), "without:PART",
            "lossy:WAY", or the name of an attention backend.
        device: where.
        seed: of weights and inputs.
    Raises:
        RequestError: an unknown peer.
    """
    components = build(scenario, device, seed)
    inputs = make_inputs(scenario, components, device, seed)
    arms = [Arm("vgen", _our_pipeline(components), scenario, inputs)]
    if inputs.prompts:
        encoded = arms[0].pipeline.encode_prompt(
            inputs.prompts[0], "", True, 1, max_sequence_length=scenario.text_tokens
        )
        inputs.text = {name: getattr(encoded, name) for name in inputs.text}
    for peer in against:
        arms.append(_peer(peer, components, scenario, inputs))
    for arm in arms:
        arm.pipeline.set_progress_bar_config(disable=True)
    return arms


def _our_pipeline(components: Components) -> TextToVideoPipeline:
    parts_of = (components.scheduler, components.vae, components.text_encoder, components.tokenizer)
    return TextToVideoPipeline(*parts_of, components.transformer, convention=components.convention)


def _peer(name: str, components: Components, scenario: Scenario, inputs: Inputs) -> Arm:
    if name in ("diffusers", "diffusers-compiled"):
        from diffusers import LTXPipeline

        theirs = peer_components(components)
        parts_of = (theirs.scheduler, theirs.vae, theirs.text_encoder, theirs.tokenizer, theirs.transformer)
        arm = Arm(name, LTXPipeline(*parts_of), scenario, inputs, ours=False)
        if name == "diffusers-compiled":
            theirs.vae.to(memory_format=torch.channels_last_3d)
            theirs.transformer.compile_repeated_blocks(fullgraph=True)
            arm.compiled = "compile_repeated_blocks(fullgraph=True), channels_last_3d VAE"
        return arm
    if name == "compiled":
        other = Components(_sharing(components.transformer), *list(vars(components).values())[1:])
        compile_blocks(other.transformer)
        return Arm(name, _our_pipeline(other), scenario, inputs, compiled="its blocks, for any number of tokens")
    if name == "plain":
        return Arm(name, _our_pipeline(components), scenario, inputs, off=("all",))
    if name.startswith("without:"):
        off = tuple(name.removeprefix("without:").split(","))
        with switches.without(*off):
            return Arm(name, _our_pipeline(components), scenario, inputs, off=off)
    if name.startswith("lossy:") and lossy.is_lossy(name.removeprefix("lossy:")):
        return _lossy(name.removeprefix("lossy:"), components, scenario, inputs)
    if name in attention_backends():
        fresh = _sharing(components.transformer)
        fresh.set_attention_backend(name)
        other = replace(components, transformer=fresh)
        return Arm(name, _our_pipeline(other), scenario, inputs)
    raise RequestError(
        f"against={name!r} is not known: use diffusers, diffusers-compiled, compiled, plain, without:PART with a "
        f"part of {', '.join(switches.PARTS)}, lossy:WAY with a way of {', '.join(lossy.LOSSY)}, or an attention "
        f"backend of {', '.join(attention_backends())}."
    )
