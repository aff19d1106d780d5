"""`vgen evaluate`: the scores of a model on SpriteWorld, or of a fine-tuning run on its footage."""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vgen.cli.display import show, showing, starting
from vgen.errors import OutputError, RequestError, VgenError, counted
from vgen.io.files import check_writable, exists_message, write_text

if TYPE_CHECKING:
    from vgen.hub.model import Model
    from vgen.jobs.plan import Job
    from vgen.training.evaluate.vbench import Clip

_GPU_BATCH = 128
_OF_THE_MACHINE = ("device", "dtype", "versions", "model")
_VBENCH = "For VBench"
_FIELD = "The field's scores, from weights on this machine"
_Tasks = Annotated[
    str,
    typer.Option("--tasks", metavar="basic|all|LIST", help="all: prediction, stories ..., too; or some by name."),
]
_TierList = Annotated[
    str | None, typer.Option("--tiers", metavar="LIST", help="1,2,3: SpriteWorld's to score; 1,2 if left out.")
]
_BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", min=1, help="Clips made at once (16; 128 on a GPU); changes none."),
]
_Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=0, help="Processes that judge meanwhile (0; on a GPU up to 15)."),
]


def evaluate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run of `vgen train lora`: base against its checkpoints.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME|FOLDER", help="The model to score.")] = "sprites",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips: minutes in place of an hour.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the scores as JSON.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="FILE", help="Write the scores as a page (.md), with intervals and aims."),
    ] = None,
    report_from: Annotated[
        str | None,
        typer.Option("--report-from", metavar="FILE", help="Make the page from scores measured before."),
    ] = None,
    choose_guidance: Annotated[
        str | None,
        typer.Option("--choose-guidance", metavar="LIST", help="2,3,4: take the best on the validation split."),
    ] = None,
    tasks: _Tasks = "basic",
    tiers: _TierList = None,
    seed: Annotated[str, typer.Option("--seed", metavar="N", help="Seed of all noise.")] = "0",
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file, or clips, if there.")] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export-vbench",
            metavar="FOLDER",
            help="Make clips for VBench, and score nothing.",
            rich_help_panel=_VBENCH,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Its prompts, one per line; else SpriteWorld's.", rich_help_panel=_VBENCH
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option("--num-prompts", metavar="N", min=1, help="SpriteWorld's: per split (256; 32), or in all (64)."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", min=1, help="Clips per prompt, to be scored (3; quick 1).")
    ] = None,
    batch_size: _BatchSize = None,
    workers: _Workers = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Clips per prompt.", rich_help_panel=_VBENCH)
    ] = 5,
    clip_model: Annotated[
        str | None,
        typer.Option("--clip-model", metavar="FOLDER", help="A local CLIP: CLIP score.", rich_help_panel=_FIELD),
    ] = None,
    fvd_model: Annotated[
        str | None,
        typer.Option("--fvd-model", metavar="FILE", help="The local TorchScript I3D: FVD.", rich_help_panel=_FIELD),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option("--lpips", metavar="FOLDER", help="Local LPIPS weights: LPIPS.", rich_help_panel=_FIELD),
    ] = None,
) -> None:
    """Score a model: how often a judge finds what was asked for; or a RUN: what it learnt, and its best checkpoint."""
    if run is not None:
        starting(f"loading {run}")
        from vgen.training.fine_tune.evaluate import evaluate_run

        evaluate_run(Path(run), typer.echo, device=device or "auto")
        return
    from vgen.training.evaluate.measures import read_measures

    read_measures(tasks)
    if report_from is not None:
        return _report_again(report_from, report, overwrite)
    if export is not None:
        scored = (output, report, choose_guidance, tiers, seeds, batch_size, workers, clip_model, fvd_model, lpips)
        if tasks != "basic" or quick or any(value is not None for value in scored):
            raise RequestError("--export-vbench makes clips and scores nothing: leave the options for scores out.")
        fields = {"model": model, "seed": seed, **({"device": device} if device is not None else {})}
        with showing():
            return _export_vbench(export, fields, prompts, num_prompts or 64, samples, overwrite)
    if prompts is not None:
        raise RequestError("--prompts is for --export-vbench; scores are of SpriteWorld's prompts.")
    for name, target, ending in (("output", output, ".json"), ("report", report, ".md")):
        if target is not None:
            _check_target(name, target, ending, overwrite)
    repeated = {
        "--num-prompts": num_prompts, "--seeds": seeds, "--choose-guidance": choose_guidance, "--tiers": tiers
    }  # fmt: skip
    words = ["vgen", "evaluate", "--model", model, "--tasks", tasks, "--seed", seed, *(["--quick"] if quick else [])]
    words += [str(word) for pair in repeated.items() if pair[1] is not None for word in pair]
    how_much = {"prompts": num_prompts, "seeds": seeds, "batch": batch_size}
    _score(
        {"model": model, "seed": seed, "device": device}, quick, how_much, workers, choose_guidance, tiers,
        tasks=tasks, output=output, report=report, command=shlex.join(words), weights=(clip_model, fvd_model, lpips),
    )  # fmt: skip


def _score(
    fields: dict[str, Any],
    quick: bool,
    how_much: dict[str, int | None],
    workers: int | None,
    choose_guidance: str | None,
    tiers: str | None,
    *,
    weights: tuple[str | None, str | None, str | None],
    **given: Any,
) -> None:
    """Check what was asked for, choose device and budget, and score; `given` is handed to `evaluate_model`."""
    from vgen.hub.model import Model
    from vgen.request.request import GenerateRequest

    request = GenerateRequest.create(prompt="scores", **fields)
    given["guidance"] = _scales(choose_guidance)
    if tiers is not None:
        given["tiers"] = _tiers(tiers)
    Model.find(request.model)
    starting(f"loading {request.model}")
    from vgen.engine.device import choose_device

    device = choose_device(request.device or "auto")
    from vgen.training.evaluate.evaluate import FULL, QUICK, evaluate_model

    on_cpu = device == "cpu"
    budget = (QUICK if quick else FULL)._replace(**({} if on_cpu else {"batch": _GPU_BATCH}))
    budget = budget._replace(**{name: count for name, count in how_much.items() if count is not None})
    if workers is None:  # on a CPU the model has its cores
        workers = 0 if on_cpu else min(os.cpu_count() or 1, 16) - 1
    given |= _field_weights(*weights)
    evaluate_model(request.model, device=device, seed=request.seed or 0, budget=budget, workers=workers, **given)


def _scales(text: str | None) -> tuple[float, ...]:
    """Guidance scales from "2,3,4"."""
    if text is None:
        return ()
    try:
        scales = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        scales = ()
    if not scales or not all(0 <= scale < float("inf") for scale in scales):
        raise RequestError(f"choose_guidance={text!r} must be guidance scales, comma-separated, such as 2,3,4.")
    return scales


def _tiers(text: str) -> tuple[int, ...]:
    """Tiers from "1,2,3"."""
    from vgen.training.data.sprites.splits import TIERS

    known = {str(tier): tier for tier in TIERS}
    words = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if any(word not in known for word in words):
        raise RequestError(f"tiers={text!r} must be tiers of SpriteWorld, comma-separated: {','.join(known)}.")
    return tuple(known[word] for word in words)


def _check_target(name: str, text: str, ending: str, overwrite: bool) -> None:
    target = Path(text)
    if target.suffix != ending:
        raise OutputError(f"{name}={text!r} must end in {ending}.")
    if not target.absolute().parent.is_dir():
        raise OutputError(f"the folder {target.absolute().parent} does not exist; make it first.")
    check_writable(target.absolute().parent)
    if target.exists() and not overwrite:
        raise OutputError(exists_message(target))


def _report_again(scores: str, report: str | None, overwrite: bool) -> None:
    """The page of scores measured before, to a file or to the screen."""
    if report is not None:
        _check_target("report", report, ".md", overwrite)
    from vgen.training.evaluate.evaluate import report_from

    page = report_from(scores)
    if report is None:
        typer.echo(page)
    else:
        write_text(Path(report), page)
        typer.echo(f"wrote {report}")


def _field_weights(clip_model: str | None, fvd_model: str | None, lpips: str | None) -> dict[str, Any]:
    """The argument `field` where any weights are given, checked."""
    if clip_model is None and fvd_model is None and lpips is None:
        return {}
    from vgen.training.evaluate.field_metrics import FieldWeights

    weights = FieldWeights(*(None if text is None else Path(text) for text in (clip_model, fvd_model, lpips)))
    weights.check()
    return {"field": weights}


def _export_vbench(
    folder: str, fields: dict[str, Any], prompts: str | None, num_prompts: int, samples: int, overwrite: bool
) -> None:
    """Make PROMPT-INDEX.mp4 for every prompt, of a file or of SpriteWorld; clips of the same request are kept."""
    from vgen.hub.model import Model
    from vgen.jobs.many_clips import read_prompts, run_clips
    from vgen.request.request import GenerateRequest
    from vgen.training.evaluate.vbench import check_export_folder, sprite_prompts, vbench_clips, write_prompt_table

    target = Path(folder)
    common = GenerateRequest.create(**{"prompt": "a prompt", **fields})
    model = Model.find(common.model)
    if prompts is None:
        texts = sprite_prompts(1, num_prompts)
    else:
        lines = read_prompts(prompts)
        for line in lines:
            if line.fault is not None:
                raise RequestError(f"--prompts {prompts}: line {line.number}: {line.fault}")
        texts = [line.text for line in lines]
    clips = vbench_clips(texts, common.seed if common.seed is not None else secrets.randbelow(2**31), samples)
    check_export_folder(target, clips)
    jobs = [_vbench_job(clip, target, fields, model) for clip in clips]
    missing = [job for job in jobs if not _is_made(job, overwrite)]
    if missing:
        run_clips(missing, show)
    table = write_prompt_table(target, clips)
    kept = len(jobs) - len(missing)
    summary = f"{counted(len(jobs), 'clip')} of {counted(len(texts), 'prompt')} ({kept} were there)"
    typer.echo(f"{target}: {summary}; prompts in {table}")


def _vbench_job(clip: Clip, folder: Path, fields: dict[str, Any], model: Model) -> Job:
    from vgen.jobs.plan import prepare
    from vgen.request.request import GenerateRequest

    try:
        request = GenerateRequest.create(**{**fields, "prompt": clip.prompt, "seed": clip.seed})
        return prepare(request, model, str(folder / clip.name), overwrite=True)
    except VgenError as error:
        raise type(error)(f"prompt {clip.prompt[:60]!r}: {error}") from None


def _is_made(job: Job, overwrite: bool) -> bool:
    """Whether the clip is there from this very request; another's is refused, or replaced with `overwrite`."""
    from vgen.io.media.codec.probe import read_metadata
    from vgen.jobs.contents import contents

    path, used = Path(job.output), contents(job.request, job.model.folder)
    if not path.exists():
        return False
    try:
        metadata = read_metadata(path) or {}
    except VgenError:
        metadata = {}
    wanted = {
        key: value
        for key, value in job.request.to_metadata(job.model.model_hash, contents=used).items()
        if key not in _OF_THE_MACHINE
    }
    if all(metadata.get(key) == value for key, value in wanted.items()):
        return True
    if overwrite:
        return False
    raise OutputError(f"{path} was made by another request. {exists_message(path)}")
