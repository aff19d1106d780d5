"""The options that all commands which make clips share.

Numbers are taken as text: `vgen.request.request` is the one place that checks them, so the command, Python and a server
give the same messages.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vgen.cli import display
from vgen.jobs import processes
from vgen.types import SKIP_MODES

_MODEL = "Model"
_SAMPLING = "Sampling"
_SIZE = "Size"
_MACHINE = "Machine"
_LOSSY = "Lossy: faster or smaller, and another clip"


_OF_MODEL = "the model's"


def _text(*names: str, metavar: str, help: str, panel: str, default: str) -> Any:
    """An option taken as text; `default` says what happens without it, which the request or the model decides."""
    return Annotated[
        str | None, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=default)
    ]


Output = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the clip goes: .mp4, .webm, .gif, or a folder/ of png frames."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Progress = Annotated[
    str,
    typer.Option(
        "--progress", metavar="MODE", help="On stderr: bar, jsonl (one JSON object per line, for programs) or none."
    ),
]
_FIT = {"metavar": "MODE", "help": "Pictures of another size: cover (cut), contain (pad) or stretch."}
Fit = Annotated[str, typer.Option("--fit", **_FIT)]
FitOfStory = Annotated[str | None, typer.Option("--fit", **_FIT, show_default="the file's, else cover")]
KeepKnownPixels = Annotated[
    bool,
    typer.Option("--keep-known-pixels/--no-keep-known-pixels", help="Paste given pixels back into the finished clip."),
]

_REQUEST_OPTIONS: dict[str, Any] = {
    "model": _text(
        "--model",
        metavar="NAME|FOLDER",
        help="A model: a name of `vgen models`, a folder or a file.",
        panel=_MODEL,
        default="sprites",
    ),
    "text_encoder": _text(
        "--text-encoder",
        metavar="FOLDER",
        help="Folder with text_encoder/ and tokenizer/, for models that come without.",
        panel=_MODEL,
        default=_OF_MODEL,
    ),
    "lora": Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="FILE[:SCALE]",
            help="A LoRA of the model, more or less of it by SCALE; may be given again.",
            show_default="none",
            rich_help_panel=_MODEL,
        ),
    ],
    "preset": _text(
        "--preset",
        metavar="NAME",
        help="Settings by name; original: the guidance that the model's makers use, slower.",
        panel=_SAMPLING,
        default="the model's defaults",
    ),
    "negative_prompt": _text(
        "--negative-prompt", metavar="TEXT", help="What to keep away from.", panel=_SAMPLING, default=_OF_MODEL
    ),
    "seed": _text("--seed", metavar="N", help="Seed of the noise.", panel=_SAMPLING, default="drawn, and reported"),
    "num_inference_steps": _text("--steps", metavar="N", help="Denoising steps.", panel=_SAMPLING, default=_OF_MODEL),
    "guidance_scale": _text(
        "--guidance-scale", metavar="W", help="Guidance by the text; 1 is off.", panel=_SAMPLING, default=_OF_MODEL
    ),
    "guidance_rescale": _text(
        "--guidance-rescale", metavar="R", help="Rescale guidance, 0 to 1.", panel=_SAMPLING, default=_OF_MODEL
    ),
    "sigmas": _text(
        "--sigmas",
        metavar="LIST",
        help="Noise levels by hand, such as 1,0.9,0.6.",
        panel=_SAMPLING,
        default="the model's schedule",
    ),
    "stg_scale": _text(
        "--stg-scale", metavar="S", help="Spatiotemporal guidance; 0 is off.", panel=_SAMPLING, default=_OF_MODEL
    ),
    "stg_blocks": _text(
        "--stg-blocks", metavar="LIST", help="Blocks that it perturbs, from 0.", panel=_SAMPLING, default=_OF_MODEL
    ),
    "stg_mode": _text(
        "--stg-mode",
        metavar="MODE",
        help="What is left out: attention_values, attention_skip or transformer_block.",
        panel=_SAMPLING,
        default=f"the model's, else {SKIP_MODES[0]}",
    ),
    "num_frames": _text("--num-frames", metavar="N", help="Frames of the clip.", panel=_SIZE, default=_OF_MODEL),
    "height": _text("--height", metavar="N", help="Rows.", panel=_SIZE, default=_OF_MODEL),
    "width": _text("--width", metavar="N", help="Columns.", panel=_SIZE, default=_OF_MODEL),
    "upscale": _text(
        "--upscale",
        metavar="FILE|FOLDER",
        help="Two passes: small first, then enlarged by this latent upsampler and refined.",
        panel=_SIZE,
        default="one pass",
    ),
    "upscale_preset": _text(
        "--upscale-preset",
        metavar="NAME",
        help="What the passes do: plain (any model), dev, distilled or distilled-13b (LTX-Video).",
        panel=_SIZE,
        default="that of the model",
    ),
    "scale": _text(
        "--scale",
        metavar="N",
        help="Write each pixel as N x N of them, 1 to 16; undone when the file is given back in.",
        panel=_SIZE,
        default="1",
    ),
    "allow_untrained": Annotated[
        bool | None,
        typer.Option(
            "--allow-untrained",
            help="Make a size or length that the model was not trained for, whatever comes out.",
            show_default="refused",
            rich_help_panel=_SIZE,
        ),
    ],
    "frame_rate": _text("--frame-rate", metavar="FPS", help="Frames per second.", panel=_SIZE, default=_OF_MODEL),
    "device": _text(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N or mps.",
        panel=_MACHINE,
        default="a GPU if there is one, else cpu",
    ),
    "dtype": _text(
        "--dtype",
        metavar="TYPE",
        help="float32, bfloat16 or float16.",
        panel=_MACHINE,
        default="bfloat16 on a GPU, else float32",
    ),
    "text_cache": Annotated[
        bool | None,
        typer.Option(
            "--text-cache/--no-text-cache",
            help="Keep encoded prompts on disk, so that a second run loads no text encoder.",
            show_default="for large text encoders",
            rich_help_panel=_MACHINE,
        ),
    ],
    "compile": Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the transformer's blocks: slow the first time, kept for later runs; see docs/speed.md.",
            show_default="no-compile",
            rich_help_panel=_MACHINE,
        ),
    ],
    "vae_memory": _text(
        "--vae-memory",
        metavar="SIZE",
        help="Memory for decoding, such as 4GB.",
        panel=_MACHINE,
        default="most of what is free",
    ),
    "parallel": _text(
        "--parallel",
        metavar="WAY",
        help="How the processes that torchrun started share a clip: auto, branches or sequence.",
        panel=_MACHINE,
        default="auto",
    ),
    "quantize": _text(
        "--quantize",
        metavar="KIND",
        help="Linear layers in 8 bits: int8, int8-weights (memory only) or fp8 (GPUs from 8.9 on).",
        panel=_LOSSY,
        default="none",
    ),
    "quantize_text": _text(
        "--quantize-text",
        metavar="KIND",
        help="The text encoder's linear layers in 8 bits: int8-weights (memory only).",
        panel=_LOSSY,
        default="none",
    ),
    "step_cache": _text(
        "--step-cache",
        metavar="NAME[:NUMBER]",
        help="Leave out what hardly changes: first-block[:THRESHOLD], taylorseer[:INTERVAL] or magcache[:THRESHOLD].",
        panel=_LOSSY,
        default="none",
    ),
    "guidance_interval": _text(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="Guidance only at these noise levels, such as 0.5,1; elsewhere one branch runs, not two.",
        panel=_LOSSY,
        default="all noise levels",
    ),
    "memory": _text(
        "--memory",
        metavar="SIZE",
        help="Memory of the device for everything, such as 8GB: the fastest way that fits is planned beforehand.",
        panel=_MACHINE,
        default="no limit",
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
        "stride.",
        show_default="about a third of a window (--num-frames)",
    ),
]

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="first|IMAGE",
        help="A picture that every window is given to keep how things look: the clip's first frame, or a file.",
        show_default="none",
    ),
]

InputCrf = Annotated[
    str | None,
    typer.Option(
        "--input-crf",
        metavar="N",
        help="Soften what is given as H.264 would, 0 to 51: pictures sharper than video tend to stay still.",
        show_default=_OF_MODEL,
    ),
]


def with_job_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as `options: JobOptions`."""
    shared = [
        inspect.Parameter("output", _KEYWORD, annotation=Output),
        *(inspect.Parameter(name, _KEYWORD, default=None, annotation=kind) for name, kind in _REQUEST_OPTIONS.items()),
        inspect.Parameter("overwrite", _KEYWORD, default=False, annotation=Overwrite),
        inspect.Parameter("progress", _KEYWORD, default="bar", annotation=Progress),
    ]

    def gathered(given: dict[str, Any]) -> JobOptions:
        output, overwrite, _ = given.pop("output"), given.pop("overwrite"), given.pop("progress")
        fields = {name: value for name, value in given.items() if value is not None and value != []}
        return JobOptions(output, overwrite, fields)

    command = with_options(function, shared, gathered)

    @functools.wraps(command)
    def together(**values: Any) -> None:
        passing = (typer.Exit, typer.Abort)
        with processes.together(passing), display.showing(values["progress"]), display.notes_of_warnings():
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
