"""Every setting of a clip, declared once: type and range, what it does, its option, and where its default comes from.

Made from this: the request and its JSON schema, the options of the commands, the arguments of the pipelines, and
docs/settings.md. A new setting is a line here, the code that acts on it, and a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vgen.request.fields import (
    BYTES,
    MAX_FRAME_RATE,
    MAX_SEED,
    NOT_BOOL,
    Blocks,
    Bytes,
    Keyframes,
    Loras,
    PerPrompt,
    PerStep,
    Scale,
    Seconds,
    Share,
    Sigmas,
    Size,
    Steps,
    Text,
    read_bytes,
    read_device,
    reads,
)
from vgen.request.knobs import FINE, OF_MODEL, Declared, Open, knob
from vgen.request.lossy import Quantization, TextQuantization, read_interval, read_step_cache
from vgen.request.process_grid import Way
from vgen.request.story import Segment
from vgen.request.tasks import TASKS, Task
from vgen.request.two_pass_presets import preset_named
from vgen.types import SKIP_MODES, FitMode, SkipMode

MODEL, SAMPLING, SIZE, GIVEN = "Model", "Sampling", "Size", "Given pictures and videos"
MACHINE, LOSSY = "Machine", "Lossy: faster or smaller, and another clip"
PANELS = (GIVEN, SAMPLING, SIZE, MODEL, MACHINE, LOSSY, FINE)


class Settings(Declared):
    """How a clip is sampled and coded: settings of a request and of a pipeline's call alike."""

    negative_prompt: Open[Text] = knob(
        "What to avoid.", "--negative-prompt", "TEXT", panel=SAMPLING, source=OF_MODEL, common=True,
        settled=True, last="",
    )  # fmt: skip
    height: Open[Size] = knob(
        "Rows of pixels; a multiple of the model's stride.", "--height", "N", panel=SIZE, source=OF_MODEL, common=True,
        settled=True,
    )  # fmt: skip
    width: Open[Size] = knob(
        "Columns of pixels; a multiple of the model's stride.", "--width", "N", panel=SIZE, source=OF_MODEL,
        common=True, settled=True,
    )  # fmt: skip
    num_frames: Open[Size] = knob(
        "Frames; one more than a multiple of the model's temporal stride.", "--num-frames", "N",
        panel=SIZE, source=OF_MODEL, common=True, settled=True,
    )  # fmt: skip
    frame_rate: Open[Annotated[float, Field(ge=0.1, le=MAX_FRAME_RATE, allow_inf_nan=False), NOT_BOOL]] = knob(
        "Frames per second; the model sees it.", "--frame-rate", "FPS", panel=SIZE, source=OF_MODEL, common=True,
        settled=True,
    )  # fmt: skip
    num_inference_steps: Open[Steps] = knob(
        "Denoising steps.", "--steps", "N", panel=SAMPLING, source=OF_MODEL, common=True, settled=True, last=50
    )
    guidance_scale: Open[PerStep[Scale]] = knob(
        "Text guidance; 1 is off.", "--guidance-scale", "W", panel=SAMPLING, source=OF_MODEL, common=True,
        settled=True, last=3.0,
    )  # fmt: skip
    guidance_rescale: Open[PerStep[Share]] = knob(
        "Share of the guided velocity that is brought to the spread of the unguided one, 0 to 1.", "--guidance-rescale",
        "R", panel=SAMPLING, source=OF_MODEL, settled=True, last=0.0, learned=True,
    )  # fmt: skip
    sigmas: Sigmas | None = knob(
        "Noise levels by hand, descending from at most 1, such as 1,0.9,0.6.", "--sigmas", "LIST", panel=SAMPLING,
        source="the model's schedule",
    )  # fmt: skip
    preset: Text | None = knob(
        "Settings by name that go before the model's defaults; original: the guidance of its makers, slower.",
        "--preset", "NAME", panel=SAMPLING, source="the model's defaults",
    )  # fmt: skip
    stg_scale: Open[PerStep[Scale]] = knob(
        "Spatiotemporal guidance; 0 is off.", "--stg-scale", "S", panel=SAMPLING, source=OF_MODEL, last=0.0,
        learned=True,
    )  # fmt: skip
    stg_blocks: Blocks | None = knob(
        "Transformer blocks that spatiotemporal guidance perturbs, from 0, such as 3 or 3,4.", "--stg-blocks", "LIST",
        panel=SAMPLING, source=OF_MODEL, learned=True,
    )  # fmt: skip
    stg_mode: Open[SkipMode] = knob(
        "What is left out of these blocks: attention_values, attention_skip or transformer_block.", "--stg-mode",
        "MODE", panel=SAMPLING, source=f"the model's, else {SKIP_MODES[0]}", last=SKIP_MODES[0], learned=True,
    )  # fmt: skip
    draft_steps: Open[Annotated[int, Field(ge=0, le=1000), NOT_BOOL]] = knob(
        "Steps of a draft that is made first; the clip begins with its first frame. 0: none.", "--draft-steps", "N",
        panel=SAMPLING, source=OF_MODEL, last=0, tasks=("generate",), has_schedule=True, learned=True,
    )  # fmt: skip
    denoise_strength: Open[Annotated[float, Field(ge=0.001, le=1, allow_inf_nan=False), NOT_BOOL]] = knob(
        "How much of the video is replaced: the share of the denoising steps that are run, above 0 to 1.", "--strength",
        "S", common=True, panel=SAMPLING, source="0.6", last=1.0, tasks=("restyle",),
    )  # fmt: skip
    input_crf: Open[Annotated[int, Field(ge=0, le=51), NOT_BOOL]] = knob(
        "Soften what is given as H.264 would, 0 to 51: pictures sharper than video tend to stay still.", "--input-crf",
        "N", panel=GIVEN, source=OF_MODEL, last=0, tasks=("animate", "interpolate", "predict", "loop"),
    )  # fmt: skip
    keep_known_pixels: bool | None = knob(
        "Paste given pixels back at the end; in Python, left out, only those of conditions with a mask.",
        "--keep-known-pixels/--no-keep-known-pixels", panel=GIVEN, source="keep-known-pixels",
        commands=("animate", "interpolate", "predict", "inpaint", "outpaint"),
    )  # fmt: skip
    vae_memory: Annotated[
        int | Literal["auto"], reads(lambda value, field: value if value == "auto" else read_bytes(value, field)), BYTES
    ] | None = knob(
        "Memory for coding, such as 4GB; clips are coded in pieces where they need more.", "--vae-memory", "SIZE",
        panel=MACHINE, source="most of what is free",
        unplanned="memory plans what the VAE may take as well; leave vae_memory out.",
    )  # fmt: skip
    step_cache: Annotated[str, reads(lambda value, field: str(read_step_cache(value)))] | None = knob(
        "Leave out what hardly changes: first-block[:THRESHOLD], taylorseer[:INTERVAL] or magcache[:THRESHOLD].",
        "--step-cache", "NAME[:NUMBER]", panel=LOSSY,
    )  # fmt: skip
    guidance_interval: Annotated[tuple[float, float], reads(lambda value, field: read_interval(value))] | None = knob(
        "Guidance only at these noise levels, such as 0.5,1; elsewhere one branch runs, not two.",
        "--guidance-interval", "LOW,HIGH", panel=LOSSY, source="all noise levels",
    )  # fmt: skip
    guidance_sigmas: Sigmas | None = knob(
        "Descending noise levels: lists of guidance_scale, guidance_rescale, stg_scale and stg_blocks then have one "
        "entry per level and not per step.", learned=True,
    )  # fmt: skip
    cfg_star: Open[bool] = knob(
        "Scale the unconditional velocity first (CFG-star).", source="off", last=False, learned=True
    )
    guidance_batching: Open[Literal["batched", "separate"]] = knob(
        "Run the branches of a step as one batch, or one after another with less memory and the same result.",
        source="batched", last="batched",
    )  # fmt: skip
    stochastic_sampling: bool | None = knob(
        "Each step goes to the predicted clean latents and back up with fresh noise.", source="as the scheduler says"
    )
    max_sequence_length: Open[Annotated[int, Field(ge=1, le=4096), NOT_BOOL]] = knob(
        "Tokens of a prompt.", source=f"{OF_MODEL}, else 128", last=128
    )
    image_cond_noise_scale: Open[Scale] = knob(
        "Noise put on given tokens at every step.", source=f"{OF_MODEL}, else 0", last=0.0
    )
    known_passes: Open[Annotated[int, Field(ge=0, le=100), NOT_BOOL]] = knob(
        "How often, after sampling, cells along the border of a mask are encoded again next to what was made; each "
        "takes a decoding and an encoding.", source="1", last=1,
    )  # fmt: skip
    decode_timestep: Open[PerPrompt[Share]] = knob(
        "Timestep of a timestep-conditioned decoder.", source=f"{OF_MODEL}, else 0", last=0.0
    )
    decode_noise_scale: PerPrompt[Share] | None = knob(
        "Noise mixed into the latents of a timestep-conditioned decoder.", source="decode_timestep"
    )
    tone_map_compression_ratio: Open[Share] = knob(
        "How far large values of the latents are compressed before decoding.", source="0", last=0.0
    )

    @property
    def num_branches(self) -> int:
        """Most evaluations of the transformer in one step."""
        scales, perturbed = (
            value if isinstance(value, tuple) else (value or 0.0,) for value in (self.guidance_scale, self.stg_scale)
        )
        return 1 + (max(scales) > 1) + (max(perturbed) > 0)

    @property
    def most_steps(self) -> int:
        """Steps of the longest schedule of a call: its own, or that of its draft."""
        return max(self.num_inference_steps, self.draft_steps or 0)


AUTOMATIC: Mapping[str, Any] = {"vae_memory": "auto"}
"""What the calls of a command take where nothing is said and no memory is planned."""

UNDRAFTED: Mapping[str, Any] = {"draft_steps": 0}
"""For calls that make their clip straight from the noise."""


class Inputs(Declared):
    """What a clip is made of."""

    task: Task = knob(
        "What is made of what: " + ", ".join(TASKS) + ".", default="generate", source="generate", panel=GIVEN
    )
    prompt: Text = knob(
        "What the clip shows; may be empty except for generate.", default="", source="empty", panel=GIVEN
    )
    seed: Open[Annotated[int, Field(ge=0, le=MAX_SEED), NOT_BOOL]] = knob(
        "Seed of the noise.", "--seed", "N", panel=SAMPLING, source="drawn; reported", common=True, settled=True
    )
    image: str | None = knob(
        "The first picture.", "--image", "IMAGE", common=True, panel=GIVEN,
        tasks=("animate", "loop", "story"), needed=("animate",), commands=("loop",),
        source="from the prompt",
    )  # fmt: skip
    first: str | None = knob(
        "The first frame, a local picture.", panel=GIVEN, tasks=("interpolate",), needed=("interpolate",)
    )
    last: str | None = knob(
        "The last frame, a local picture.", panel=GIVEN, tasks=("interpolate",), needed=("interpolate",)
    )
    keyframes: Keyframes | None = knob(
        "A picture between them, and which frame it is (from 0; negative from the end); may be given again.",
        "--keyframe", "FILE@INDEX", panel=GIVEN, repeated=True, common=True, tasks=("interpolate",),
    )  # fmt: skip
    video: str | None = knob(
        "The given clip, a local video.", panel=GIVEN, tasks=("predict", "restyle", "inpaint", "outpaint", "extend"),
        needed=("predict", "restyle", "inpaint", "outpaint", "extend"),
    )  # fmt: skip
    mask: str | None = knob(
        "A picture or video: of the same size, white is repainted, black and transparent places are kept.", "--mask",
        "FILE", common=True, panel=GIVEN, tasks=("inpaint",), needed=("inpaint",),
    )  # fmt: skip
    keep_frames: Open[Size] = knob(
        "Frames that start the clip: one more than a multiple of the model's temporal stride.",
        "--keep-frames", "N", common=True, panel=GIVEN, source="about half of the clip", tasks=("predict",),
    )  # fmt: skip
    backward: bool | None = knob(
        "Predict backward: the kept frames end the clip.", "--backward", common=True, panel=GIVEN,
        source="forward", tasks=("predict",),
    )  # fmt: skip
    seconds: Seconds | None = knob(
        "How much is added.", "--seconds", "S", common=True, panel=GIVEN, tasks=("extend",), needed=("extend",)
    )
    segments: tuple[Segment, ...] | None = knob(
        "What happens, one after the other.", panel=GIVEN, tasks=("story",), needed=("story",)
    )
    overlap: Size | None = knob(
        "Frames that each window is given of what came before: one more than a multiple of the model's temporal "
        "stride.", "--overlap", "N", panel=GIVEN, source="about a third of a window (--num-frames)",
        tasks=("extend", "story"),
    )  # fmt: skip
    reference: str | None = knob(
        "A picture that every window is given to keep how things look: the clip's first frame, or a file.",
        "--reference", "first|IMAGE", panel=GIVEN, tasks=("extend", "story"),
    )  # fmt: skip
    fit: FitMode = knob(
        "Pictures of another size: cover (cut), contain (pad) or stretch.", "--fit", "MODE", default="cover",
        common=True, panel=GIVEN, source="cover",
        commands=("animate", "interpolate", "predict", "loop", "inpaint", "extend", "story", "restyle"),
    )  # fmt: skip
    upscale: Text | None = knob(
        "Two passes: small first, then enlarged by this latent upsampler and refined.", "--upscale", "FILE|FOLDER",
        panel=SIZE, source="one pass", unplanned="two passes are not planned for; leave one of them out.",
    )  # fmt: skip
    upscale_preset: Annotated[Text, reads(lambda value, field: preset_named(value) and value)] | None = knob(
        "What the passes do: plain (any model), dev, distilled or distilled-13b (LTX-Video).", "--upscale-preset",
        "NAME", panel=SIZE, source="that of the model",
    )  # fmt: skip
    scale: Annotated[int, Field(ge=1, le=16), NOT_BOOL] | None = knob(
        "Write each pixel as N x N of them, 1 to 16; undone when the file is given back in.", "--scale", "N",
        panel=SIZE, source="1",
    )  # fmt: skip


class Machine(Declared):
    """The model, and the machine that it runs on."""

    model: str = knob(
        "A model: a name of `vgen models`, a folder or a file.", "--model", "NAME|FOLDER", default="sprites",
        panel=MODEL, source="sprites", common=True,
    )  # fmt: skip
    text_encoder: str | None = knob(
        "Folder with text_encoder/ and tokenizer/, for models that come without.", "--text-encoder", "FOLDER",
        panel=MODEL, source=OF_MODEL,
    )  # fmt: skip
    lora: Loras | None = knob(
        "A LoRA at SCALE; may be given again.", "--lora", "FILE[:SCALE]", panel=MODEL,
        common=True, repeated=True,
    )  # fmt: skip
    allow_untrained: bool | None = knob(
        "Make a size or length that the model was not trained for, whatever comes out.", "--allow-untrained",
        panel=SIZE, source="refused",
    )  # fmt: skip
    device: Open[Annotated[str, reads(read_device)]] = knob(
        "cpu, cuda, cuda:N or mps.", "--device", "DEVICE", panel=MACHINE, source="a GPU, else cpu",
        common=True, settled=True, last="auto",
    )  # fmt: skip
    dtype: Open[Literal["float32", "bfloat16", "float16", "auto"]] = knob(
        "float32, bfloat16 or float16.", "--dtype", "TYPE", panel=MACHINE, source="bfloat16 on a GPU, else float32",
        settled=True, last="auto",
    )  # fmt: skip
    text_cache: bool | None = knob(
        "Keep encoded prompts on disk, so that a second run loads no text encoder.", "--text-cache/--no-text-cache",
        panel=MACHINE, source="for large text encoders",
    )  # fmt: skip
    compile: bool | None = knob(
        "Compile the transformer's blocks: slow the first time, kept for later runs; see docs/speed.md.",
        "--compile/--no-compile", panel=MACHINE, source="no-compile",
    )  # fmt: skip
    parallel: Way | None = knob(
        "How the processes that torchrun started share a clip: auto, branches or sequence.", "--parallel", "WAY",
        panel=MACHINE, source="auto",
    )  # fmt: skip
    memory: Bytes | None = knob(
        "Memory of the device for everything, such as 8GB: the fastest way that fits is planned beforehand.",
        "--memory", "SIZE", panel=MACHINE, source="no limit", common=True,
    )  # fmt: skip
    quantize: Quantization | None = knob(
        "Linear layers in 8 bits: int8, int8-weights (memory only) or fp8 (GPUs from 8.9 on).", "--quantize", "KIND",
        panel=LOSSY,
    )  # fmt: skip
    quantize_text: TextQuantization | None = knob(
        "The text encoder's linear layers in 8 bits: int8-weights (memory only).", "--quantize-text", "KIND",
        panel=LOSSY,
    )  # fmt: skip
