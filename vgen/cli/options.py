"""The options that all commands which make clips share.

Numbers are taken as text: `vgen.request` is the one place that checks them, so the command, Python and a server give
the same messages.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vgen.cli import processes

_MODEL = "Model"
_SAMPLING = "Sampling"
_SIZE = "Size"
_MACHINE = "Machine"
_LOSSY = "Lossy: faster or smaller, and another clip"


def _text(*names: str, metavar: str, help: str, panel: str) -> Any:
    return Annotated[str | None, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)]


Output = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the clip goes: .mp4, .webm, .gif, or a folder/ of png frames."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Fit = Annotated[
    str, typer.Option("--fit", metavar="MODE", help="Pictures of another size: cover (cut), contain (pad) or stretch.")
]
KeepKnownPixels = Annotated[
    bool,
    typer.Option("--keep-known-pixels/--no-keep-known-pixels", help="Paste given pixels back into the finished clip."),
]

_REQUEST_OPTIONS: dict[str, Any] = {
    "model": _text("--model", metavar="NAME|FOLDER", help="A model; sprites if left out.", panel=_MODEL),
    "text_encoder": _text(
        "--text-encoder",
        metavar="FOLDER",
        help="Folder with text_encoder/ and tokenizer/, for models that come without.",
        panel=_MODEL,
    ),
    "lora": Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="FILE[:SCALE]",
            help="A LoRA of the model, more or less of it by SCALE; may be given again.",
            rich_help_panel=_MODEL,
        ),
    ],
    "negative_prompt": _text("--negative-prompt", metavar="TEXT", help="What to keep away from.", panel=_SAMPLING),
    "seed": _text("--seed", metavar="N", help="Seed of the noise; drawn and reported if left out.", panel=_SAMPLING),
    "num_inference_steps": _text("--steps", metavar="N", help="Denoising steps.", panel=_SAMPLING),
    "guidance_scale": _text("--guidance-scale", metavar="W", help="Guidance by the text; 1 is off.", panel=_SAMPLING),
    "guidance_rescale": _text("--guidance-rescale", metavar="R", help="Rescale guidance, 0 to 1.", panel=_SAMPLING),
    "sigmas": _text("--sigmas", metavar="LIST", help="Noise levels by hand, such as 1,0.9,0.6.", panel=_SAMPLING),
    "stg_scale": _text("--stg-scale", metavar="S", help="Spatiotemporal guidance; 0 is off.", panel=_SAMPLING),
    "stg_blocks": _text("--stg-blocks", metavar="LIST", help="Blocks that it perturbs, from 0.", panel=_SAMPLING),
    "stg_mode": _text(
        "--stg-mode",
        metavar="MODE",
        help="What is left out: attention_values, attention_skip or transformer_block.",
        panel=_SAMPLING,
    ),
    "num_frames": _text("--num-frames", metavar="N", help="Frames of the clip.", panel=_SIZE),
    "height": _text("--height", metavar="N", help="Rows.", panel=_SIZE),
    "width": _text("--width", metavar="N", help="Columns.", panel=_SIZE),
    "upscale": _text(
        "--upscale",
        metavar="FILE|FOLDER",
        help="Two passes: small first, then enlarged by this latent upsampler and refined.",
        panel=_SIZE,
    ),
    "upscale_preset": _text(
        "--upscale-preset",
        metavar="NAME",
        help="What the passes do: plain (any model), dev, distilled or distilled-13b (LTX-Video).",
        panel=_SIZE,
    ),
    "frame_rate": _text("--frame-rate", metavar="FPS", help="Frames per second.", panel=_SIZE),
    "device": _text("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.", panel=_MACHINE),
    "dtype": _text("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.", panel=_MACHINE),
    "text_cache": Annotated[
        bool | None,
        typer.Option(
            "--text-cache/--no-text-cache",
            help="Keep encoded prompts on disk, so that a second run loads no text encoder; by its size if left out.",
            rich_help_panel=_MACHINE,
        ),
    ],
    "compile": Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the transformer's blocks: slow the first time, kept for later runs; see docs/speed.md.",
            rich_help_panel=_MACHINE,
        ),
    ],
    "vae_memory": _text(
        "--vae-memory",
        metavar="SIZE",
        help="Memory for decoding, such as 4GB; by what is free.",
        panel=_MACHINE,
    ),
    "parallel": _text(
        "--parallel",
        metavar="WAY",
        help="How the processes that torchrun started share a clip: auto, branches or sequence.",
        panel=_MACHINE,
    ),
    "quantize": _text(
        "--quantize",
        metavar="KIND",
        help="Linear layers in 8 bits: int8, int8-weights (memory only) or fp8 (GPUs from 8.9 on).",
        panel=_LOSSY,
    ),
    "quantize_text": _text(
        "--quantize-text",
        metavar="KIND",
        help="The text encoder's linear layers in 8 bits: int8-weights (memory only).",
        panel=_LOSSY,
    ),
    "step_cache": _text(
        "--step-cache",
        metavar="NAME[:NUMBER]",
        help="Leave out what hardly changes: first-block[:THRESHOLD], taylorseer[:INTERVAL] or magcache[:THRESHOLD].",
        panel=_LOSSY,
    ),
    "guidance_interval": _text(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="Guidance only at these noise levels, such as 0.5,1; elsewhere one branch runs, not two.",
        panel=_LOSSY,
    ),
    "memory": _text(
        "--memory",
        metavar="SIZE",
        help="Memory of the device for everything, such as 8GB: the fastest way that fits is planned beforehand.",
        panel=_MACHINE,
    ),
}


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class JobOptions:
    """What was given for the shared options.

    Attributes:
        output: name of the output.
        overwrite: replace what is there.
        fields: request fields that were given; those left out are absent.
    """

    output: str
    overwrite: bool
    fields: dict[str, Any]


Overlap = Annotated[
    str | None,
    typer.Option(
        "--overlap",
        metavar="N",
        help="Frames that each window is given of what came before: one more than a multiple of the model's temporal "
        "stride. About a third of a window (--num-frames) if left out.",
    ),
]

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="first|IMAGE",
        help="A picture that every window is given to keep how things look: the clip's first frame, or a file.",
    ),
]

InputCrf = Annotated[
    str | None,
    typer.Option(
        "--input-crf",
        metavar="N",
        help="Soften what is given as H.264 would, 0 to 51: pictures sharper than video tend to stay still.",
    ),
]


def with_job_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as `options: JobOptions`."""
    shared = [
        inspect.Parameter("output", _KEYWORD, annotation=Output),
        *(inspect.Parameter(name, _KEYWORD, default=None, annotation=kind) for name, kind in _REQUEST_OPTIONS.items()),
        inspect.Parameter("overwrite", _KEYWORD, default=False, annotation=Overwrite),
    ]

    def gathered(given: dict[str, Any]) -> JobOptions:
        output, overwrite = given.pop("output"), given.pop("overwrite")
        fields = {name: value for name, value in given.items() if value is not None and value != []}
        return JobOptions(output, overwrite, fields)

    command = with_options(function, shared, gathered)

    @functools.wraps(command)
    def together(**values: Any) -> None:
        with processes.together():
            command(**values)

    return together


def with_options(
    function: Callable[..., None],
    shared: Sequence[inspect.Parameter],
    gathered: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """A command with the options of `function` and some that it shares with others.

    Args:
        function: takes what `gathered` makes of the shared ones as `options`.
        shared: names, defaults and annotations.
        gathered: is given their values by name.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
    every = [p.replace(kind=_KEYWORD) for p in (*own, *shared)]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {p.name: values.pop(p.name) for p in shared}
        function(**values, options=gathered(given))

    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in every}
    return command
