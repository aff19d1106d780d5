"""A call in two passes, as far as numbers alone decide it: presets and sizes. Shared by requests and pipelines.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from vgen.errors import RequestError, ShapeError, nearest
from vgen.types import Strides, VideoShape

PLAIN = "plain"
"""The preset for any model."""

SCHEDULE = ("num_inference_steps", "sigmas", "timesteps")
"""Settings that say a schedule: a pass that gives one of them takes none of the call's."""

SKIPS = ("skip_initial_steps", "skip_final_steps")
"""What a pass knows besides the settings of a call."""


@dataclass(frozen=True)
class TwoPassPreset:
    """What two passes do differently from the call they belong to.

    Attributes:
        downscale_factor: size of the first pass as a share of the size asked for, in (0, 1].
        adain_factor: see vgen.diffusion.latent_statistics.match_statistics.
        first_pass: settings that hold in the first pass, and `SKIPS`.
        second_pass: the same for the second.
    """

    downscale_factor: float = 2 / 3
    adain_factor: float = 1.0
    first_pass: Mapping[str, Any] = field(default_factory=dict)
    second_pass: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> set[str]:
        """Settings that a call can no longer choose for both passes."""
        both = set(self.first_pass) & set(self.second_pass)
        return both | (set(SCHEDULE) if both & set(SCHEDULE) else set())


@cache
def presets() -> dict[str, TwoPassPreset]:
    """All presets by name, from configs/sample/two_pass.yaml."""
    import yaml

    content = yaml.safe_load((files("vgen.configs") / "sample" / "two_pass.yaml").read_text(encoding="utf-8"))
    return {name: TwoPassPreset(**entry) for name, entry in content.items()}


def preset_named(name: str) -> TwoPassPreset:
    """The preset of that name.

    Raises:
        RequestError: there is none; names the nearest.
    """
    known = presets()
    if not isinstance(name, str) or name not in known:
        hint = nearest(str(name), known)
        end = f"; {hint}" if hint else "."
        raise RequestError(f"upscale_preset={name!r:.80} is not known: use {', '.join(known)}{end}")
    return known[name]


def preset_for(defaults: Mapping[str, Any]) -> str:
    """The preset for a model by its defaults: the one they name, "distilled" where they allow its sigmas, or "plain".

    Args:
        defaults: see vgen.hub.find.model_defaults; `upscale_preset` and `allowed_inference_steps` are read.
    """
    if defaults.get("upscale_preset") is not None:
        return str(defaults["upscale_preset"])
    allowed = defaults.get("allowed_inference_steps")
    distilled = preset_named("distilled")
    needed = {round(sigma, 4) for one in (distilled.first_pass, distilled.second_pass) for sigma in one["sigmas"]}
    known = {round(float(step), 4) for step in allowed} if isinstance(allowed, (list, tuple)) else set()
    return "distilled" if needed <= known else PLAIN


class PassShapes(NamedTuple):
    """The sizes of both passes; the second is brought to the size asked for after decoding."""

    first: VideoShape
    second: VideoShape


def pass_shapes(target: VideoShape, strides: Strides, scale: Strides, downscale_factor: float = 2 / 3) -> PassShapes:
    """The sizes in which two passes work.

    The first pass has the share `downscale_factor` of the rows and columns, rounded down to whole strides, the second
    what the upsampler makes of it. With an upsampler of time the first pass has every second frame.

    Args:
        target: size asked for.
        strides: pixels per token.
        scale: of the upsampler.
        downscale_factor: in (0, 1]; without an effect where the upsampler leaves rows and columns alone.
    Returns:
        Both sizes.
    Raises:
        ShapeError: the target does not fit the strides, or leaves the first pass too small.
    """
    target.check(strides)
    if not 0 < downscale_factor <= 1:
        raise RequestError(f"downscale_factor={downscale_factor!r} must be above 0 and at most 1, for instance 2/3.")
    sizes = []
    for name, size, stride, times in (
        ("height", target.height, strides.height, scale.height),
        ("width", target.width, strides.width, scale.width),
    ):
        share = int(size * downscale_factor) if times > 1 else size
        if share < stride:
            least = next(n for n in range(size, 10**9, stride) if int(n * downscale_factor) >= stride)
            raise ShapeError(
                f"{name}={size} leaves the first pass {share}, less than the model's stride {stride}: use {least} or "
                "more."
            )
        sizes.append(share // stride * stride)
    frames = target.num_frames
    if scale.temporal > 1 and (frames - 1) % (scale.temporal * strides.temporal):
        step = scale.temporal * strides.temporal
        below = (frames - 1) // step * step + 1
        raise ShapeError(
            f"num_frames={frames} cannot be enlarged in time by {scale.temporal}: num_frames - 1 must divide by "
            f"{step}; use {below} or {below + step}."
        )
    first = VideoShape((frames - 1) // scale.temporal + 1, *sizes)
    return PassShapes(first, VideoShape(frames, sizes[0] * scale.height, sizes[1] * scale.width))
