"""Text, images and known pixels in, video out: a causal 3-D VAE and a diffusion transformer trained by flow matching.

Public names are loaded when first used, so that `import vgen` costs nothing:

    from vgen import TextToVideoPipeline
    frames = TextToVideoPipeline.from_pretrained("sprites")("a red circle moves to the left").frames[0]

After `import vgen` diffusers knows the classes too: `DiffusionPipeline.from_pretrained(folder)` loads our folders.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from vgen.models.diffusers_compat import announce
from vgen.version import __version__

if TYPE_CHECKING:
    from vgen.events import Event
    from vgen.jobs.run import Result
    from vgen.models.latent_upsampler import LatentUpsampler
    from vgen.models.transformer.video_dit import VideoDiT
    from vgen.models.vae.video_vae import CausalVideoVAE
    from vgen.pipelines import (
        ImageToVideoPipeline,
        InterpolationPipeline,
        LatentUpsamplePipeline,
        MaskedPredictionPipeline,
        TextToVideoPipeline,
        TwoPass,
        VideoCondition,
        VideoToVideoPipeline,
        load_upsampler,
        save_video,
    )
    from vgen.request.request import GenerateRequest

_HOMES = {
    "CausalVideoVAE": "vgen.models",
    "LatentUpsampler": "vgen.models",
    "VideoDiT": "vgen.models",
    "ImageToVideoPipeline": "vgen.pipelines",
    "InterpolationPipeline": "vgen.pipelines",
    "LatentUpsamplePipeline": "vgen.pipelines",
    "MaskedPredictionPipeline": "vgen.pipelines",
    "TextToVideoPipeline": "vgen.pipelines",
    "TwoPass": "vgen.pipelines",
    "VideoCondition": "vgen.pipelines",
    "VideoToVideoPipeline": "vgen.pipelines",
    "load_upsampler": "vgen.pipelines",
    "save_video": "vgen.pipelines",
    "GenerateRequest": "vgen.request.request",
    # The bases that diffusers looks for in a library whose components it loads.
    "DiffusionPipeline": "diffusers",
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}

__all__ = [
    "CausalVideoVAE",
    "GenerateRequest",
    "ImageToVideoPipeline",
    "InterpolationPipeline",
    "LatentUpsamplePipeline",
    "LatentUpsampler",
    "MaskedPredictionPipeline",
    "TextToVideoPipeline",
    "TwoPass",
    "VideoCondition",
    "VideoDiT",
    "VideoToVideoPipeline",
    "__version__",
    "load_upsampler",
    "run",
    "save_video",
]


def run(
    request: GenerateRequest,
    *,
    output: str | PathLike[str],
    overwrite: bool = False,
    on_event: Callable[[Event], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """Make the clip of a request and write it, as the commands do.

        >>> vgen.run(vgen.GenerateRequest(prompt="a red circle moves to the left"), output="circle.mp4").path

    The model is loaded for this call alone; `vgen.jobs.run.Runner` keeps it for the next one.

    Args:
        request: what is asked for; what it leaves out comes from the model.
        output: .mp4, .webm or .gif, or a folder of png frames.
        overwrite: replace what is there.
        on_event: called with every event of `vgen.events`.
        cancelled: looked at within each step; once it is true the call ends.
    Returns:
        Where the clip is, and the resolved request that makes it again.
    Raises:
        RequestError: something cannot be done as asked; nothing was loaded.
        VgenError: see `vgen.jobs.run.Runner.run`.
    """
    from vgen.jobs.plan import plan
    from vgen.jobs.run import run as run_job

    return run_job(plan(request, output, overwrite, on_event), on_event, cancelled)


def __getattr__(name: str) -> Any:
    """Import a public name where it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_COMPONENTS = [name for name, home in _HOMES.items() if home == "vgen.models"]
announce([*_COMPONENTS, *(name for name, home in _HOMES.items() if home == "vgen.pipelines" and "Pipeline" in name)])
