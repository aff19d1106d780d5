"""A pytest plugin: diffusers' own LTX tests, run on our two model classes. How: docs/parity.md."""

import diffusers

from vgen.models import CausalVideoVAE, VideoDiT

diffusers.AutoencoderKLLTXVideo, diffusers.LTXVideoTransformer3DModel = CausalVideoVAE, VideoDiT
