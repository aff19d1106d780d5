"""One description of a job, shared by Python, the command and the metadata written into outputs.

`GenerateRequest` is what was asked; `resolve` fills in what was left out and gives a `ResolvedRequest`, which says
everything needed to make the same clip again. Neither imports torch or opens a file.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vgen.errors import RequestError
from vgen.request.fields import (
    MAX_FRAME_RATE,
    MAX_SEED,
    choice,
    device_name,
    index_list,
    index_lists,
    keyframe_list,
    lora_list,
    memory_amount,
    number,
    one_or_each,
    refusing,
    sigma_list,
    text,
    whole_number,
)
from vgen.request.lossy import LossyFields
from vgen.request.process_grid import WAYS
from vgen.request.resolve import check_amount, frames_to_keep, frames_to_restyle, preset_settings, settle_guidance
from vgen.request.steps import check_guidance, settle_steps, skipped_steps
from vgen.request.story import Segment
from vgen.request.tasks import NEEDED, TASKS, TASKS_OF
from vgen.request.two_pass_presets import PLAIN, preset_for, preset_named
from vgen.types import SKIP_MODES, FitMode, Strides, VideoShape

_Seed = Annotated[int, BeforeValidator(whole_number("seed", 0, MAX_SEED))]
_Frames = Annotated[int, BeforeValidator(whole_number("num_frames", 1, 1_000_000))]
_Height = Annotated[int, BeforeValidator(whole_number("height", 1, 1_000_000))]
_Width = Annotated[int, BeforeValidator(whole_number("width", 1, 1_000_000))]
_Rate = Annotated[float, BeforeValidator(number("frame_rate", 0.1, MAX_FRAME_RATE))]
_Steps = Annotated[int, BeforeValidator(whole_number("num_inference_steps", 1, 1000))]
_SCALE, _RESCALE = number("guidance_scale", 0.0, 100.0), number("guidance_rescale", 0.0, 1.0)
_STG_SCALE = number("stg_scale", 0.0, 100.0)
_Scale = Annotated[float, BeforeValidator(_SCALE)]
_Rescale = Annotated[float, BeforeValidator(_RESCALE)]
_Scales = Annotated[float | tuple[float, ...], BeforeValidator(one_or_each(_SCALE))]
_Rescales = Annotated[float | tuple[float, ...], BeforeValidator(one_or_each(_RESCALE))]
_StgScales = Annotated[float | tuple[float, ...], BeforeValidator(one_or_each(_STG_SCALE))]
_StgBlockLists = Annotated[
    tuple[int, ...] | tuple[tuple[int, ...], ...], BeforeValidator(index_lists("stg_blocks", 999))
]
_GuidanceSigmas = Annotated[tuple[float, ...], BeforeValidator(sigma_list("guidance_sigmas"))]
_Preset = Annotated[str, BeforeValidator(text("preset"))]
_Sigmas = Annotated[tuple[float, ...], BeforeValidator(sigma_list("sigmas"))]
_StgScale = Annotated[float, BeforeValidator(_STG_SCALE)]
_StgBlocks = Annotated[tuple[int, ...], BeforeValidator(index_list("stg_blocks", 999))]
_StgMode = Annotated[str, BeforeValidator(choice("stg_mode", SKIP_MODES))]
_Draft = Annotated[int, BeforeValidator(whole_number("draft_steps", 0, 1000))]
_Strength = Annotated[float, BeforeValidator(number("denoise_strength", 0.001, 1.0))]
_Enlarging = Annotated[int, BeforeValidator(whole_number("scale", 1, 16))]
_Keep = Annotated[int, BeforeValidator(whole_number("keep_frames", 1, 1_000_000))]
_Crf = Annotated[int, BeforeValidator(whole_number("input_crf", 0, 51))]
_VaeMemory = Annotated[int, BeforeValidator(memory_amount("vae_memory"))]
_Memory = Annotated[int, BeforeValidator(memory_amount("memory"))]
_Dtype = Annotated[str, BeforeValidator(choice("dtype", ("float32", "bfloat16", "float16")))]
_Parallel = Annotated[str, BeforeValidator(choice("parallel", WAYS))]
_Fit = Annotated[FitMode, BeforeValidator(choice("fit", get_args(FitMode)))]
_TaskName = Annotated[str, BeforeValidator(choice("task", TASKS))]
_Device = Annotated[str, BeforeValidator(device_name)]
_Prompt = Annotated[str, BeforeValidator(text("prompt"))]
_NegativePrompt = Annotated[str, BeforeValidator(text("negative_prompt"))]
_Lora = Annotated[tuple[str, ...], BeforeValidator(lora_list("lora"))]
_Seconds = Annotated[float, BeforeValidator(number("seconds", 0.01, 36_000.0))]
_Overlap = Annotated[int, BeforeValidator(whole_number("overlap", 1, 1_000_000))]
_Keyframes = Annotated[tuple[str, ...], BeforeValidator(keyframe_list("keyframes"))]
_Upscale = Annotated[str, BeforeValidator(text("upscale"))]
_UpscalePreset = Annotated[str, BeforeValidator(refusing(preset_named))]


_UNPLANNED = {
    "vae_memory": "memory plans what the VAE may take as well; leave vae_memory out.",
    "upscale": "two passes are not planned for; leave one of them out.",
}
"""Why a field does not go with `memory`."""

DENOISE_STRENGTH = 0.6
"""What restyle takes where nothing is said."""


class _Job(LossyFields):
    """What is the same before and after resolving."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    task: _TaskName = Field(default="generate", description="What is made of what: " + ", ".join(TASKS) + ".")
    prompt: _Prompt = Field(default="", description="What the clip shows; may be empty except for generate.")
    model: str = Field(default="sprites", description="Name of a model, or its folder.")
    image: str | None = Field(default=None, description="animate, loop, story: the first frame, a local picture.")
    first: str | None = Field(default=None, description="interpolate: the first frame, a local picture.")
    last: str | None = Field(default=None, description="interpolate: the last frame, a local picture.")
    video: str | None = Field(
        default=None, description="predict, restyle, inpaint, outpaint, extend: the given clip, a local video."
    )
    mask: str | None = Field(default=None, description="inpaint: a picture or video, white where it is painted anew.")
    keyframes: _Keyframes | None = Field(default=None, description="interpolate: pictures between, each FILE@INDEX.")
    seconds: _Seconds | None = Field(default=None, description="extend: how much is added.")
    overlap: _Overlap | None = Field(
        default=None, description="extend, story: frames that a window is given of the one before."
    )
    reference: str | None = Field(
        default=None, description="extend, story: 'first' or a picture; how things look throughout."
    )
    segments: tuple[Segment, ...] | None = Field(default=None, description="story: what happens, one after the other.")
    backward: bool | None = Field(default=None, description="predict: the kept frames end the clip.")
    fit: _Fit = Field(
        default="cover", description="How pictures of another size are fitted: cover, contain or stretch."
    )
    keep_known_pixels: bool = Field(default=True, description="Given pixels are pasted back after decoding.")
    text_encoder: str | None = Field(
        default=None, description="Folder with text_encoder/ and tokenizer/, if not the model's."
    )
    lora: _Lora | None = Field(default=None, description="LoRA files, each FILE or FILE:SCALE.")
    preset: _Preset | None = Field(
        default=None, description="Settings by name that go before the model's defaults: original, its makers' own."
    )
    upscale: _Upscale | None = Field(
        default=None, description="Latent upsampler of a call in two passes: a file or folder."
    )
    upscale_preset: _UpscalePreset | None = Field(
        default=None, description="What the passes do: plain, dev, distilled ..."
    )
    parallel: _Parallel | None = Field(
        default=None, description="How several processes share a clip; auto if left out."
    )
    scale: _Enlarging | None = Field(
        default=None, description="Each pixel is written as a square of so many pixels; undone when it is read."
    )
    allow_untrained: bool | None = Field(
        default=None, description="Make sizes and lengths that the model was not trained for."
    )

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """Build a request, with one readable error instead of pydantic's report.

        Raises:
            RequestError: every wrong field with its value, its range and the nearest legal value; an unknown field
                with the name that was probably meant.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise RequestError(" ".join(_messages(error, cls.model_fields))) from None


class GenerateRequest(_Job):
    """What was asked for; None means that the model's own default is taken."""

    negative_prompt: _NegativePrompt | None = Field(default=None, description="What to keep away from.")
    seed: _Seed | None = Field(default=None, description="Seed of the noise; drawn and reported if left out.")
    num_frames: _Frames | None = Field(default=None, description="Frames; must fit the model's temporal stride.")
    height: _Height | None = Field(default=None, description="Rows; must divide by the model's stride.")
    width: _Width | None = Field(default=None, description="Columns; must divide by the model's stride.")
    frame_rate: _Rate | None = Field(default=None, description="Frames per second.")
    num_inference_steps: _Steps | None = Field(default=None, description="Denoising steps.")
    guidance_scale: _Scale | None = Field(default=None, description="Guidance by the text; 1 is off.")
    guidance_rescale: _Rescale | None = Field(default=None, description="Share of the rescaled guidance, 0 to 1.")
    sigmas: _Sigmas | None = Field(default=None, description="The schedule by hand: noise levels that descend from 1.")
    stg_scale: _StgScale | None = Field(default=None, description="Spatiotemporal guidance; 0 is off.")
    stg_blocks: _StgBlocks | None = Field(default=None, description="Transformer blocks that it perturbs, from 0.")
    stg_mode: _StgMode | None = Field(default=None, description="What it leaves out of them.")
    draft_steps: _Draft | None = Field(default=None, description="generate: a draft first, in so many steps.")
    denoise_strength: _Strength | None = Field(default=None, description="restyle: share of the schedule run, 0 to 1.")
    keep_frames: _Keep | None = Field(default=None, description="predict: frames of the video that are kept.")
    input_crf: _Crf | None = Field(default=None, description="How much given frames are softened: H.264's, 0 to 51.")
    device: _Device | None = Field(default=None, description="cpu, cuda, cuda:N or mps; chosen if left out.")
    dtype: _Dtype | None = Field(default=None, description="float32, bfloat16 or float16; by the device if left out.")
    text_cache: bool | None = Field(default=None, description="Cache prompts on disk; if left out, for large encoders.")
    compile: bool | None = Field(default=None, description="Compile the transformer's blocks; kept for later runs.")
    vae_memory: _VaeMemory | None = Field(default=None, description="Bytes for decoding; what is free if left out.")
    memory: _Memory | None = Field(default=None, description="Bytes of the device for all; planned beforehand.")

    @model_validator(mode="after")
    def _check_task(self) -> GenerateRequest:
        if self.task == "generate" and not self.prompt.strip():
            raise PydanticCustomError(
                "vgen", "prompt is empty: say what the clip shows, for instance 'a red circle moves to the left'."
            )
        if self.upscale_preset is not None and self.upscale is None:
            raise PydanticCustomError("vgen", "upscale_preset does nothing without upscale: give an upsampler too.")
        for field in ("vae_memory", "upscale") if self.memory is not None else ():
            if getattr(self, field) is not None:
                raise PydanticCustomError(
                    "vgen",
                    "{message}",
                    {"message": f"memory and {field} cannot be given together: {_UNPLANNED[field]}"},
                )
        for field, tasks in TASKS_OF.items():
            value = getattr(self, field)
            if value is not None and self.task not in tasks:
                owner = " or ".join(", ".join(map(repr, tasks)).rsplit(", ", 1))
                raise PydanticCustomError(
                    "vgen", "{message}", {"message": f"{field}={value!r} belongs to task {owner}, not {self.task!r}."}
                )
            if value is None and self.task in NEEDED.get(field, ()):
                raise PydanticCustomError(
                    "vgen",
                    "{message}",
                    {"message": f"{field} is missing: task {self.task!r} needs {_kind_of(field)} there."},
                )
        return self

    def resolve(
        self, defaults: Mapping[str, Any], strides: Strides, video_frames: int | None = None
    ) -> ResolvedRequest:
        """Fill in everything that was left out, and check the whole.

        Args:
            defaults: the model's, see `vgen.hub.find.model_defaults`.
            strides: the model's, see `vgen.hub.find.model_strides`.
            video_frames: frames of the given video, for tasks predict and restyle; bounds keep_frames and num_frames.
        Raises:
            ShapeError: sizes that do not fit the model's strides, or are too large; with what would fit.
            RequestError: a parameter that neither the request nor the model gives.
        """
        values, preset = self.model_dump(), preset_settings(self.preset, defaults)
        check_guidance({**preset, **{name: value for name, value in values.items() if value is not None}}, [defaults])
        defaults = {**defaults, **preset}
        steps = settle_steps(values, [defaults])
        values.update(num_inference_steps=steps.num_inference_steps, sigmas=steps.sigmas)
        if self.task in ("restyle", "inpaint", "outpaint"):
            values["num_frames"] = frames_to_restyle(self.num_frames, defaults, strides.temporal, video_frames)
        for field in ("num_frames", "height", "width", "frame_rate", "num_inference_steps", "guidance_scale"):
            if values[field] is None:
                if defaults.get(field) is None:
                    raise RequestError(f"{field} is not given, and the model has no default for it; give one.")
                values[field] = defaults[field]
        for field, last in (("guidance_rescale", 0.0), ("negative_prompt", "")):
            if values[field] is None:
                values[field] = defaults.get(field) if defaults.get(field) is not None else last
        if values["seed"] is None:
            values["seed"] = secrets.randbelow(2**32)
        values |= {field: values[field] or "auto" for field in ("device", "dtype")}
        shape = VideoShape(values["num_frames"], values["height"], values["width"])
        shape.check(strides)
        check_amount(shape, strides)
        settle_guidance(values, defaults, preset)
        if self.upscale is not None:
            values["upscale_preset"] = self.upscale_preset or preset_for(defaults)
            _refuse_settled(values["upscale_preset"], self)
        if self.task == "generate" and self.draft_steps is None and values["sigmas"] is None:
            values["draft_steps"] = defaults.get("draft_steps")
        if self.task == "restyle":
            values["denoise_strength"] = DENOISE_STRENGTH if self.denoise_strength is None else self.denoise_strength
            skipped_steps(values["num_inference_steps"], values["denoise_strength"])
        if self.task == "predict":
            values["keep_frames"] = frames_to_keep(self.keep_frames, shape.num_frames, strides.temporal, video_frames)
        return ResolvedRequest.create(**values)


_OF_CALLS = (
    "sigmas", "guidance_sigmas", "cfg_star", "stg_scale", "stg_blocks", "stg_mode", "denoise_strength", "input_crf",
    "draft_steps", "guidance_interval", "step_cache",
)  # fmt: skip
"""Settings of a pipeline's call, where there are any."""


class ResolvedRequest(_Job):
    """A job with nothing left open: the same request on the same machine gives the same clip."""

    negative_prompt: _NegativePrompt
    seed: _Seed
    num_frames: _Frames
    height: _Height
    width: _Width
    frame_rate: _Rate
    num_inference_steps: _Steps
    guidance_scale: _Scales
    guidance_rescale: _Rescales
    guidance_sigmas: _GuidanceSigmas | None = None
    cfg_star: bool | None = None
    sigmas: _Sigmas | None = None
    stg_scale: _StgScales | None = None
    stg_blocks: _StgBlockLists | None = None
    stg_mode: _StgMode | None = None
    draft_steps: _Draft | None = None
    denoise_strength: _Strength | None = None
    keep_frames: _Keep | None = None
    input_crf: _Crf | None = None
    device: str
    dtype: str
    text_cache: bool | None = None
    compile: bool | None = None
    vae_memory: _VaeMemory | None = None
    memory: _Memory | None = None

    @property
    def num_branches(self) -> int:
        """Most evaluations of the transformer in one step."""
        scales, perturbed = (
            value if isinstance(value, tuple) else (value or 0.0,) for value in (self.guidance_scale, self.stg_scale)
        )
        return 1 + (max(scales) > 1) + (max(perturbed) > 0)

    def call_settings(self) -> dict[str, Any]:
        """What every call of a pipeline is given, whatever its task: all but prompt, length and noise."""
        always = ("negative_prompt", "height", "width", "frame_rate", "num_inference_steps", "guidance_scale")
        given = {name: value for name in _OF_CALLS if (value := getattr(self, name)) is not None}
        return {
            **{name: getattr(self, name) for name in (*always, "guidance_rescale")},
            **given,
            "vae_memory": self.vae_memory or ("auto" if self.memory is None else None),  # None: as planned
        }

    def to_metadata(
        self,
        model_hash: str | None = None,
        versions: Mapping[str, str] | None = None,
        contents: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that is written into an output.

        Args:
            model_hash: see `vgen.hub.find.model_hash`.
            versions: of the libraries that took part.
            contents: hashes of LoRAs and other files that the clip depends on, by kind; empty where there are none.
        """
        found = {key: value for key, value in self.model_dump().items() if value is not None}
        lossy = {"lossy": list(self.lossy)} if self.lossy else {}
        hashes = {"contents": dict(contents)} if contents else {}
        return {**found, **lossy, **hashes, "model_hash": model_hash, "versions": dict(versions or {})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The request in an output's metadata.

        Raises:
            RequestError: something is missing, wrong or unknown.
        """
        about = ("model_hash", "versions", "lossy", "contents")
        fields = {key: value for key, value in metadata.items() if key not in about}
        return cls.create(**fields)


def _kind_of(field: str) -> str:
    return {"seconds": "a number", "segments": "segments"}.get(field, "a local file")


def _refuse_settled(name: str, asked: GenerateRequest) -> None:
    """Refuse what the request asks for and the passes of a preset decide themselves."""
    for field in sorted(preset_named(name).settled):
        if getattr(asked, field, None) is not None:
            raise RequestError(
                f"{field}={getattr(asked, field)!r:.80} and upscale_preset={name!r} contradict each other: the preset "
                f"says it for both passes. Leave {field} out, or use upscale_preset={PLAIN!r}."
            )


def _messages(error: ValidationError, known: Mapping[str, Any]) -> list[str]:
    """pydantic's findings, each as one sentence."""
    found = []
    for entry in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in entry["loc"] if part != "nullable")
        if entry["type"] == "vgen":
            found.append(entry["msg"])
        elif entry["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            found.append(f"{field!r} is not a field of a request: {hint}")
        elif entry["type"] == "missing":
            found.append(f"{field} is missing.")
        else:
            found.append(f"{field}={entry['input']!r:.80} is not valid: {entry['msg']}.")
    return found
