"""`vgen train lora | full | resume`: fine-tuning on footage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vgen.cli.display import starting
from vgen.cli.options import with_options
from vgen.errors import bytes_text

if TYPE_CHECKING:
    from pathlib import Path

Data = Annotated[str, typer.Argument(metavar="DATA", help="The data set of `vgen data`.")]
ModelName = Annotated[str, typer.Option("--model", metavar="NAME|FOLDER", help="What is fine-tuned.")]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="The run.")]
Cache = Annotated[str | None, typer.Option("--cache", metavar="KEY", help="Which cache, where there are several.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples a micro-batch.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches a step.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0, help="Learning rate.")]
FirstFrame = Annotated[
    float, typer.Option("--first-frame", min=0, max=1, help="How often the first frame is given, so that it animates.")
]
Tasks = Annotated[
    str,
    typer.Option("--tasks", metavar="LIST", help="All shares of what is given: text=.6,first=.2,prefix=.1,other=.1."),
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="LIST", help="How often folders are drawn: good=2,rest=0.5; 1 if unsaid.")
]
SmallBuckets = Annotated[
    str, typer.Option("--small-buckets", metavar="wrap|refuse", help="Buckets smaller than a batch: repeat, or stop.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of all draws.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to train.")]
Precision = Annotated[str, typer.Option("--precision", metavar="no|bf16", help="bf16: base and passes in bfloat16.")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")]
Optimizer = Annotated[
    str, typer.Option("--optimizer", metavar="NAME", help="adamw, adamw8bit (needs torchao) or muon.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="8gb|16gb|24gb|80gb", help="Save memory until the run fits; computed, nothing needlessly."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, such as every.validate=50."),
]


def fine_tune(
    data: Data,
    output: Output,
    model: ModelName = "sprites",
    cache: Cache = None,
    steps: Steps = 1500,
    batch: Batch = 1,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    first_frame: FirstFrame = 0.25,
    tasks: Tasks = "",
    weights: Weights = "",
    small_buckets: SmallBuckets = "wrap",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "no",
    gradient_checkpointing: Checkpointing = False,
    optimizer: Optimizer = "adamw",
    preset: Preset = None,
    settings: Set = None,
    **chosen: Any,
) -> None:
    """Write the recipe that the options say, and train it.

    Args:
        data: and all others: options of `vgen train lora` and `vgen train full`.
        chosen: what else a FineTune takes.
    """
    from dataclasses import replace
    from pathlib import Path

    starting(f"reading {data}")
    from vgen.pipelines.loading.model_files import lasting_name
    from vgen.training.data.footage.cache import CacheIndex, find_index
    from vgen.training.data.footage.commands import shares
    from vgen.training.data.footage.records import DataSet
    from vgen.training.fine_tune.presets import FineTune, fine_tune_recipe, write_recipe

    folder, place = Path(output), find_index(DataSet.open(data).folder.resolve(), model, cache)
    asked = FineTune(
        tasks=shares("tasks", tasks) if tasks else {"text": 1 - first_frame, "first": first_frame},
        weights=shares("weights", weights), steps=steps, batch=batch, gradient_accumulation=accumulate, lr=lr,
        small_buckets=small_buckets, seed=seed, device=device, mixed_precision=precision,
        gradient_checkpointing=gradient_checkpointing, optimizer=optimizer, **chosen,
    )  # fmt: skip
    index = replace(CacheIndex.open(place), model=lasting_name(model))
    if preset is not None:
        asked = _fitted(asked, preset, index)
    recipe = fine_tune_recipe(folder.name, folder.resolve(), place, index, asked)
    _run(write_recipe(folder, recipe, _settings(settings)), None)


def _with_fine_tune_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of `fine_tune`; it receives them as `options`."""
    parameters = inspect.signature(fine_tune, eval_str=True).parameters.values()
    return with_options(function, [p for p in parameters if p.name != "chosen"], dict)


@_with_fine_tune_options
def lora(
    options: dict[str, Any],
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 32,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0, help="Scale times rank; the rank if left out.")
    ] = None,
    targets: Annotated[
        str, typer.Option("--targets", metavar="LIST", help="attention, blocks, all, or endings of layers' names.")
    ] = "blocks",
    base: Annotated[
        str, typer.Option("--base", metavar="keep|int8|float8", help="The frozen weights in 8 bits; needs torchao.")
    ] = "keep",
    offload: Annotated[
        bool,
        typer.Option("--offload", help="The frozen blocks live on the host, two at a time on the GPU; exact, slower."),
    ] = False,
) -> None:
    """Train a LoRA on a data set; interrupted, `vgen train resume` goes on."""
    layers = tuple(part.strip() for part in targets.split(","))
    fine_tune(**options, mode="lora", rank=rank, alpha=alpha, targets=layers, base_weights=base, offload=offload)


@_with_fine_tune_options
def full(options: dict[str, Any]) -> None:
    """Train the whole transformer on a data set; the run's export/ is a model folder."""
    fine_tune(**options, mode="full")


def vae(
    data: Data,
    output: Output,
    model: ModelName = "sprites",
    cache: Cache = None,
    train: Annotated[
        str, typer.Option("--train", metavar="decoder|all", help="all: latents change, the transformer must follow.")
    ] = "decoder",
    steps: Steps = 1000,
    batch: Batch = 1,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    weights: Weights = "",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "no",
    settings: Set = None,
) -> None:
    """Train a model's VAE on the pixels of a data set; the run's export/ is the VAE."""
    from pathlib import Path

    starting(f"reading {data}")
    from vgen.errors import RequestError
    from vgen.hub.find import resolve_model
    from vgen.training.data.footage.cache import CacheIndex, find_index
    from vgen.training.data.footage.commands import shares
    from vgen.training.data.footage.records import DataSet
    from vgen.training.fine_tune.presets import FineTune, vae_recipe, write_recipe

    place, model_path = find_index(DataSet.open(data).folder.resolve(), model, cache), resolve_model(model)
    if model_path.is_file():
        raise RequestError(f"model={model!r} is a single file: make it a folder first, with `vgen convert`.")
    folder = Path(output)
    asked = FineTune(
        mode="full", steps=steps, batch=batch, gradient_accumulation=accumulate, lr=lr,
        weights=shares("weights", weights), seed=seed, device=device, mixed_precision=precision,
    )  # fmt: skip
    vae, index = (model_path / "vae").resolve(), CacheIndex.open(place)
    recipe = vae_recipe(folder.name, folder.resolve(), place, index, vae, asked, train)
    _run(write_recipe(folder, recipe, _settings(settings)), None)


def clip(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="One video.")],
    output: Output,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What it shows.")],
    model: ModelName = "sprites",
    num_frames: Annotated[
        str | None, typer.Option("--num-frames", metavar="N", help="Length of a sample; by the model if left out.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Of a sample.")] = None,
    steps: Steps = 500,
    batch: Batch = 1,
    lr: Rate = 5e-4,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 32,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "no",
    gradient_checkpointing: Checkpointing = False,
    settings: Set = None,
) -> None:
    """Tune a model to one clip, all of it, in one command; then edit it with other prompts."""
    from pathlib import Path

    starting(f"reading {video}")
    from vgen.engine.device import choose_device
    from vgen.pipelines.loading.model_files import ModelParts
    from vgen.training.data.footage.cache import fill_cache
    from vgen.training.data.footage.captions import caption, same_text
    from vgen.training.data.footage.commands import geometry_for
    from vgen.training.data.footage.ingest import WHOLE, ingest

    parts = ModelParts.find(model)
    geometry = geometry_for(parts, num_frames, size)
    place_on = choose_device(device)
    data = Path(output) / "data"
    result = ingest(Path(video), data, WHOLE, typer.echo)
    if result.failed:
        raise typer.Exit(2)
    caption(result.data, same_text(prompt), typer.echo, overwrite=True)
    place, _, _ = fill_cache(result.data, parts, geometry, place_on, typer.echo)
    fine_tune(
        str(data), output, model, place.parent.name, tasks="text=0.5,first=0.25,prefix=0.15,other=0.1", steps=steps,
        batch=batch, lr=lr, seed=seed, device=device, precision=precision,
        gradient_checkpointing=gradient_checkpointing, settings=settings, mode="lora", rank=rank,
    )  # fmt: skip


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")],
    settings: Set = None,
) -> None:
    """Go on from the newest whole checkpoint of a run, as if it had never stopped."""
    from pathlib import Path

    from vgen.errors import RequestError

    recipe = Path(run) / "recipe.yaml"
    if not recipe.is_file():
        raise RequestError(f"{run} holds no recipe.yaml: it is not the folder of a run of `vgen train lora`.")
    _run(recipe, settings)


def _fitted(asked: Any, preset: str, index: Any) -> Any:
    """What was asked with as much saved as the preset needs, and a line that says what that is."""
    from dataclasses import asdict

    from vgen.training.fine_tune.memory import run_memory
    from vgen.training.fine_tune.presets import fit_memory

    fitted = fit_memory(asked, preset, lambda choice: run_memory(index, choice))
    before = asdict(asked)
    saved = [f"{name}={value}" for name, value in asdict(fitted).items() if value != before[name]]
    needed = run_memory(index, fitted)
    typer.echo(f"Preset {preset}: about {bytes_text(needed)} are needed, with {', '.join(saved) or 'nothing saved'}.")
    return fitted


def _settings(asked: list[str] | None) -> list[str]:
    """What --set says; the folder of a run is the one on the command line."""
    from vgen.errors import RequestError

    if any(setting.partition("=")[0].strip() == "output_dir" for setting in asked or ()):
        raise RequestError("--set output_dir: a run writes to its own folder; copy that, or name another one with -o.")
    return list(asked or ())


def _run(recipe: Path, settings: list[str] | None) -> None:
    """Train in the folder in which a run's recipe lies."""
    starting(f"loading what {recipe} trains")
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.run import run_recipe

    keep_freed_memory()
    folder = run_recipe(recipe, _settings(settings), folder=recipe.parent)
    typer.echo(f"The run is in {folder}.")
