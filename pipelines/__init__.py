"""Pipelines: text, images and known pixels to clips. Importing this makes them known to diffusers."""

from __future__ import annotations

if __name__ != "vgen.pipelines":
    raise ImportError("import vgen.pipelines, not the folder pipelines/ itself")

from vgen.models.diffusers_compat import register_class
from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.pipelines.coding.save import save_video
from vgen.pipelines.image_to_video import ImageToVideoPipeline
from vgen.pipelines.interpolation import InterpolationPipeline
from vgen.pipelines.latent_upsample import LatentUpsamplePipeline, load_upsampler
from vgen.pipelines.masked_prediction import MaskedPredictionPipeline
from vgen.pipelines.passes.two_pass import TwoPass
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.pipelines.video_to_video import VideoToVideoPipeline

for _pipeline in (
    TextToVideoPipeline,
    ImageToVideoPipeline,
    MaskedPredictionPipeline,
    InterpolationPipeline,
    VideoToVideoPipeline,
    LatentUpsamplePipeline,
):
    register_class(_pipeline)

__all__ = [
    "BasePipeline",
    "ImageToVideoPipeline",
    "InterpolationPipeline",
    "LatentUpsamplePipeline",
    "MaskedPredictionPipeline",
    "TextToVideoPipeline",
    "TwoPass",
    "VideoCondition",
    "VideoPipelineOutput",
    "VideoToVideoPipeline",
    "load_upsampler",
    "save_video",
]
