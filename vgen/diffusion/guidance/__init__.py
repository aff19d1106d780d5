"""Guidance: which branches of the model to run at a step, and how to combine their velocities.

The denoising loop knows only the protocol. A new kind of guidance is one small class: it names its branches (a branch
that needs another forward says so in `model_kwargs` or `skip_layers`) and combines what they predict.
"""

from __future__ import annotations

from vgen.diffusion.guidance.adaptive_projected import AdaptiveProjectedGuidance
from vgen.diffusion.guidance.build import build_guidance
from vgen.diffusion.guidance.classifier_free import ClassifierFreeGuidance, project_unconditional, rescale_to
from vgen.diffusion.guidance.composed import ComposedGuidance
from vgen.diffusion.guidance.protocol import CONDITIONAL, UNCONDITIONAL, Branch, Guidance, StepState
from vgen.diffusion.guidance.spatiotemporal import SpatioTemporalGuidance
from vgen.diffusion.guidance.values import BySigma, Values

__all__ = [
    "CONDITIONAL",
    "UNCONDITIONAL",
    "AdaptiveProjectedGuidance",
    "Branch",
    "BySigma",
    "ClassifierFreeGuidance",
    "ComposedGuidance",
    "Guidance",
    "SpatioTemporalGuidance",
    "StepState",
    "Values",
    "build_guidance",
    "project_unconditional",
    "rescale_to",
]
