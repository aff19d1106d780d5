"""From what a caller gives to the passes of a call, all checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vgen.diffusion.guidance import build_guidance
from vgen.errors import RequestError
from vgen.pipelines.call.checks import check_start
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.call.untrained import warn_untrained
from vgen.pipelines.coding.given_pixels import Conditions, GivenPixels
from vgen.pipelines.passes.draft import DraftedPass, has_draft
from vgen.pipelines.passes.passes import Call, Pass, Reencoding, Sampler
from vgen.types import LatentShape


def plan_call(
    pipe: Sampler, given_settings: Mapping[str, Any], conditions: Conditions, clip: GivenPixels | Tensor | None
) -> Call:
    """The passes of a call.

    Args:
        pipe: of any task.
        given_settings: the caller's.
        conditions: what is known.
        clip: what the call starts from, at its size; None: noise.
    Raises:
        RequestError: something cannot be done as asked; nothing was computed.
    """
    two_pass = given_settings.get("two_pass")
    if two_pass is not None:
        if not hasattr(two_pass, "plan"):
            raise RequestError(f"two_pass is a {type(two_pass).__name__}: give TwoPass(upsampler, preset).")
        once = {name: value for name, value in given_settings.items() if name != "two_pass"}
        call = two_pass.plan(pipe, once, conditions, clip)
    else:
        settings = pipe.fill_settings(given_settings)
        one = plan_pass(pipe, settings, *pipe.check_inputs(settings, conditions), clip)
        check_start(settings, clip is not None)
        call = Call(with_reencoding(one), settings, one.given)
    for one in call.passes:
        if isinstance(one, Pass):
            warn_untrained(pipe, one.settings, one.given, one.clip)
    return call


def plan_pass(
    pipe: Sampler,
    settings: GenerationSettings,
    shape: LatentShape,
    given: Sequence[GivenPixels],
    clip: GivenPixels | Tensor | None,
    kind: Callable[..., Pass] = Pass,
) -> Pass:
    """One pass, checked; drafted where the settings ask for that and nothing is given.

    Args:
        pipe: of any task.
        settings: of the pass, checked.
        shape: latent size.
        given: conditions at the size of the pass.
        clip: what it starts from, or None.
        kind: makes a pass; one of another kind never has a draft.
    Raises:
        RequestError: a guidance that does not fit the pass or the model.
    """
    guidance = build_guidance(settings, settings.guidance)
    if kind is Pass and has_draft(settings, given, clip is not None):
        kind = DraftedPass
    planned = kind(settings, shape, given, guidance, clip)
    planned.check(len(pipe.transformer.transformer_blocks))
    return planned


def with_reencoding(one: Pass) -> list[Pass | Reencoding]:
    """A pass, and the re-encoding of known cells after it where a mask hides pixels."""
    masked = any(entry.mask is not None for entry in one.given)
    return [one, Reencoding(one.settings, one.given)] if masked else [one]
