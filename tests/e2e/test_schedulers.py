"""Which of diffusers' schedulers step a clip here, checked against a plain loop, and which are refused by name."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from vgen.diffusion.schedules import linspace_sigmas
from vgen.errors import RequestError
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline
from vgen.pipelines.call.conventions import CONVENTIONS
from vgen.pipelines.call.schedule_and_guidance import set_schedule
from vgen.pipelines.call.settings import GenerationSettings

USABLE = {
    "shifted": {"shift": 3.0},
    "shifted by size": {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "linear shift by size": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "stretched": {"shift": 2.0, "shift_terminal": 0.1},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "stochastic": {"stochastic_sampling": True},
}


@pytest.mark.parametrize("kind", USABLE)
def test_every_configuration_of_it_steps_as_a_plain_loop_does(pipe, kind) -> None:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**USABLE[kind])
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
    )
    noise = torch.randn(1, 48, 4, generator=torch.Generator().manual_seed(0))
    call = {"guidance_scale": 1.0, "num_inference_steps": 6, "output_type": "latent", "latents": noise}
    found = pipe("a", **call, generator=torch.Generator().manual_seed(1)).frames
    hook.remove()

    plain, generator = FlowMatchEulerDiscreteScheduler(**USABLE[kind]), torch.Generator().manual_seed(1)
    mu = 0.5 + (1.15 - 0.5) * (48 - 256) / (4096 - 256)
    plain.set_timesteps(sigmas=linspace_sigmas(6).tolist(), mu=mu if plain.config.use_dynamic_shifting else None)
    tokens = noise
    with torch.no_grad():
        for timestep in plain.timesteps:
            told = {**calls[0], "hidden_states": tokens, "timestep": timestep.expand(1)}
            velocity = pipe.transformer(**told)[0]
            tokens = plain.step(velocity, timestep, tokens, generator=generator).prev_sample
    assert len(calls) == 6
    expected = tokens.reshape(1, 3, 4, 4, 4).movedim(-1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("kind", USABLE)
def test_the_model_is_always_told_where_its_tokens_stand(kind, convention) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**USABLE[kind])
    settings = GenerationSettings.fill(
        {"prompt": "a", "num_inference_steps": 7}, CONVENTIONS[convention].defaults, _SIZE
    )
    set_schedule(scheduler, settings, 300, CONVENTIONS[convention], torch.device("cpu"))
    torch.testing.assert_close(scheduler.timesteps, scheduler.sigmas[:-1] * 1000, rtol=1e-6, atol=0)
    assert (scheduler.sigmas.diff() < 0).all() and scheduler.sigmas[-1] == 0


_SIZE = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "guidance_scale": 1.0, "max_sequence_length": 8}


def _others() -> list[str]:
    """Every scheduler of diffusers that can be made with no argument, but the one that works."""
    names = []
    for name in sorted(vars(diffusers)["__all__"]):
        if not name.endswith("Scheduler") or name == "FlowMatchEulerDiscreteScheduler":
            continue
        try:
            parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
            needed = [
                p for p in parameters if p.default is p.empty and p.name != "self" and p.kind is not p.VAR_KEYWORD
            ]
        except (ImportError, RuntimeError, TypeError):
            continue
        if not needed and getattr(diffusers, name).__module__.startswith("diffusers.schedulers"):
            names.append(name)
    return names


def test_every_other_is_refused_by_name_where_it_is_assigned(pipe) -> None:
    others, before = _others(), pipe.scheduler
    assert {"UniPCMultistepScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
            "DPMSolverMultistepScheduler", "LTXEulerAncestralRFScheduler"} <= set(others)  # fmt: skip
    for name in others:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        cls = getattr(diffusers, name)
        takes = inspect.signature(cls.__init__).parameters
        try:
            scheduler = cls.from_config(before.config, **{key: value for key, value in flow.items() if key in takes})
        except (ImportError, ValueError):
            continue
        with pytest.raises(RequestError, match=rf"scheduler={name} cannot .*: use FlowMatchEulerDiscreteScheduler"):
            pipe.scheduler = scheduler
    with pytest.raises(RequestError, match="stochastic_sampling=True"):
        pipe.scheduler = diffusers.FlowMatchLCMScheduler()
    with pytest.raises(RequestError, match="invert_sigmas=True"):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    assert pipe.scheduler is before


def test_it_is_refused_at_construction_and_before_a_folder_is_loaded(pipe, tiny_pipeline_folder, tmp_path) -> None:
    bad = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(RequestError, match="scheduler=UniPCMultistepScheduler"):
        TextToVideoPipeline(**{**pipe.components, "scheduler": bad})
    with pytest.raises(RequestError, match="scheduler=UniPCMultistepScheduler"):
        MaskedPredictionPipeline.from_pipe(pipe, scheduler=bad)
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    with pytest.raises(RequestError, match="scheduler=UniPCMultistepScheduler"):
        TextToVideoPipeline.from_pretrained(folder, scheduler=bad)
    bad.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError, match="scheduler=UniPCMultistepScheduler"):
        TextToVideoPipeline.from_pretrained(folder)
    good = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=3.0)
    assert TextToVideoPipeline.from_pretrained(folder, scheduler=good).scheduler is good


def test_models_of_diffusers_are_refused_with_ours_named(pipe, ltx_folders) -> None:
    theirs = diffusers.LTXPipeline.from_pretrained(ltx_folders["0.9.5"])
    with pytest.raises(
        RequestError, match=r"diffusers' LTXVideoTransformer3DModel: load it as VideoDiT\.from_pretrained"
    ):
        pipe.transformer = theirs.transformer
    with pytest.raises(
        RequestError, match=r"diffusers' (AutoencoderKLLTXVideo|LTXVideoTransformer3DModel): load it as"
    ):
        TextToVideoPipeline.from_pipe(theirs)
