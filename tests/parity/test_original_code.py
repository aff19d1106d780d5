"""Against Lightricks' own code, where a checkout of it is at hand: LTX_VIDEO_CODE=/path/to/LTX-Video pytest ...

Both sides take posterior means, since the original draws posteriors from the global generator.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vgen.hub.catalog import CATALOG
from vgen.hub.convert import folder_to_file
from vgen.io.weights.safetensors_file import read_header
from vgen.models import LatentUpsampler
from vgen.models.empty import model_shapes
from vgen.models.vae.video_vae import LatentDistribution
from vgen.pipelines import MaskedPredictionPipeline, TwoPass, VideoCondition

CODE = os.environ.get("LTX_VIDEO_CODE")
pytestmark = pytest.mark.skipif(not CODE, reason="needs LTX_VIDEO_CODE, a checkout of Lightricks/LTX-Video")
CALL = {"height": 64, "width": 96, "num_frames": 17, "frame_rate": 25}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def original():
    """The modules of the original code that are run, with posterior means in place of draws, there and here."""
    sys.path.insert(0, str(CODE))
    with pytest.MonkeyPatch.context() as patch:
        from ltx_video.models.autoencoders import latent_upsampler, vae
        from ltx_video.pipelines import pipeline_ltx_video

        patch.setattr(vae.DiagonalGaussianDistribution, "sample", lambda self, *_: self.mode())
        patch.setattr(LatentDistribution, "sample", lambda self, *_: self.mode())
        pipeline_ltx_video.LatentUpsampler = latent_upsampler.LatentUpsampler
        yield pipeline_ltx_video
    sys.path.remove(str(CODE))


@pytest.fixture
def single_file(ltx_folders, tmp_path):
    """Writes a model as Lightricks publishes it; `transformer` and `scheduler` go over its metadata's configs."""

    def write(generation="0.9.5", transformer=None, scheduler=None):
        file = tmp_path / f"ltx-{generation}.safetensors"
        folder_to_file(ltx_folders[generation], file, model_shapes)
        config = json.loads(read_header(file).metadata["config"])
        config["transformer"] |= transformer or {}
        config["scheduler"] |= scheduler or {"shifting": None, "sampler": "LinearQuadratic"}
        save_file(load_file(file), file, {"config": json.dumps(config)})
        return file

    return write


def _theirs(original, file):
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder
    from ltx_video.models.transformers.symmetric_patchifier import SymmetricPatchifier
    from ltx_video.models.transformers.transformer3d import Transformer3DModel
    from ltx_video.schedulers.rf import RectifiedFlowScheduler

    absent = dict.fromkeys(
        [
            "tokenizer",
            "text_encoder",
            "prompt_enhancer_image_caption_model",
            "prompt_enhancer_image_caption_processor",
            "prompt_enhancer_llm_model",
            "prompt_enhancer_llm_tokenizer",
        ]
    )
    weights = load_file(file)
    vae_weights = {key[4:]: value for key, value in weights.items() if key.startswith("vae.")}
    vae = CausalVideoAutoencoder.from_config(json.loads(read_header(file).metadata["config"])["vae"])
    vae.load_state_dict(vae_weights)
    pipeline = original.LTXVideoPipeline(
        vae=vae.eval(),
        transformer=Transformer3DModel.from_pretrained(file).eval(),
        scheduler=RectifiedFlowScheduler.from_pretrained(file),
        patchifier=SymmetricPatchifier(patch_size=1),
        **absent,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _ours(file, folder, cls=MaskedPredictionPipeline):
    pipeline = cls.from_single_file(file, text_encoder_folder=folder, convention="original")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _seed(seed=0):
    return torch.Generator().manual_seed(seed)


def _text():
    embeds = torch.randn(2, 16, 32, generator=_seed(9))
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 10:] = mask[1, 4:] = False
    names = ("prompt_embeds", "negative_prompt_embeds")
    masks = ("prompt_attention_mask", "negative_prompt_attention_mask")
    return {
        **{name: embeds[i : i + 1] for i, name in enumerate(names)},
        **{name: mask[i : i + 1] for i, name in enumerate(masks)},
    }


def _as_theirs(text):
    return {name: value.long() if value.dtype == torch.bool else value for name, value in text.items()}


_FIXED = {"is_video": True, "vae_per_channel_normalize": True, "output_type": "latent", "negative_prompt": None}


def _strategy():
    from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy

    return SkipLayerStrategy.AttentionValues


def _compare(theirs, ours):
    assert theirs.shape == ours.shape and theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def _pictures(count, height=128, width=192):
    return torch.rand(count, 3, height, width, generator=_seed(4))


@pytest.mark.parametrize("conditions", [[(0, 1, 0.7)], [(0, 9, 0.3), (8, 1, 0.5)], [(8, 9, 0.9)]])
def test_two_passes_with_soft_conditions(original, single_file, ltx_folders, conditions):
    file = single_file()
    theirs, ours, text = _theirs(original, file), _ours(file, ltx_folders["0.9.5"]), _text()
    torch.manual_seed(0)
    upsampler = LatentUpsampler(8, mid_channels=32, num_blocks_per_stage=1).eval()
    reference = original.LatentUpsampler(in_channels=8, mid_channels=32, num_blocks_per_stage=1, dims=3).eval()
    reference.load_state_dict(upsampler.state_dict())
    items, known = [], []
    for frame, count, strength in conditions:
        pictures = _pictures(count)
        items.append(original.ConditioningItem(pictures.permute(1, 0, 2, 3)[None] * 2 - 1, frame, strength))
        known.append(VideoCondition(pictures, frame, strength))
    first = {"guidance_scale": 3.0, "stg_scale": 0.0, "rescaling_scale": 1.0, "num_inference_steps": 6}
    second = {**first, "skip_initial_inference_steps": 3}
    call = {**CALL, "height": 128, "width": 192, "image_cond_noise_scale": 0.15}
    expected = original.LTXMultiScalePipeline(theirs, reference)(
        0.5, first, second, **call, **_as_theirs(text), **_FIXED, conditioning_items=items, generator=_seed()
    ).images
    two_pass = TwoPass(
        upsampler,
        first_pass={"num_inference_steps": 6},
        second_pass={"num_inference_steps": 6, "skip_initial_steps": 3},
        downscale_factor=0.5,
    )
    found = ours(
        conditions=known, **call, **text, guidance_scale=3.0, two_pass=two_pass, input_crf=0, output_type="latent",
        generator=_seed(),
    ).frames  # fmt: skip
    _compare(expected, found)


@pytest.mark.parametrize(
    ("generation", "transformer", "scheduler"),
    [
        ("0.9.0", {"causal_temporal_positioning": True}, {"shifting": "SD3", "target_shift_terminal": 0.1}),
        ("0.9.5", {"causal_temporal_positioning": False}, {}),
        ("0.9.5", {}, {"shifting": None, "sampler": "Uniform"}),
        ("0.9.5", {}, {"shifting": None, "sampler": "Constant", "shift": 0.7}),
        ("0.9.5", {}, {"shifting": "SD3", "target_shift_terminal": 0.1, "sampler": "LinearQuadratic"}),
        ("0.9.1", {}, {"shifting": None, "sampler": "LinearQuadratic"}),
        ("0.9.5", {}, {}),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_positions_and_sampler_of_the_metadata(original, single_file, ltx_folders, generation, transformer, scheduler,
                                               given):  # fmt: skip
    file = single_file(generation, transformer, scheduler or None)
    theirs, ours, text = _theirs(original, file), _ours(file, ltx_folders[generation]), _text()
    pictures, known, items = _pictures(1, 64, 96), [], None
    if given:
        known = [VideoCondition(pictures, 8, 0.7)]
        items = [original.ConditioningItem(pictures.permute(1, 0, 2, 3)[None] * 2 - 1, 8, 0.7)]
    steps = {"num_inference_steps": 5, "guidance_scale": 3.0}
    expected = theirs(
        **CALL, **_as_theirs(text), **_FIXED, **steps, stg_scale=0.0, rescaling_scale=1.0, conditioning_items=items,
        generator=_seed(),
    ).images  # fmt: skip
    call = {**CALL, **steps, **text, "input_crf": 0, "image_cond_noise_scale": 0.0, "output_type": "latent"}
    _compare(expected, ours(conditions=known, **call, generator=_seed()).frames)


def _within(blocks):
    """Blocks of a public model as blocks of one that has two."""
    return [_within(entry) if isinstance(entry, (list, tuple)) else entry % 2 for entry in blocks]


@pytest.mark.parametrize("num_steps", [30, 11])
@pytest.mark.parametrize(
    ("name", "config"), [("ltx-2b-0.9.5", "ltxv-2b-0.9.5"), ("ltx-13b-0.9.8-dev", "ltxv-13b-0.9.8-dev")]
)
def test_the_preset_original_is_the_makers_configuration(original, single_file, ltx_folders, name, config, num_steps):
    """Their configuration file in their code, our preset in ours: numbers, and lists by noise level."""
    stated = yaml.safe_load((Path(CODE) / "configs" / f"{config}.yaml").read_text())
    stated = {**stated, **stated.get("first_pass", {})}
    names = ("guidance_scale", "stg_scale", "rescaling_scale", "guidance_timesteps", "cfg_star_rescale")
    guidance = {key: stated[key] for key in names if key in stated}
    preset = {**CATALOG[name].defaults["presets"]["original"]}
    assert (stated["num_inference_steps"], stated["stg_mode"]) == (preset["num_inference_steps"], preset["stg_mode"])
    assert stated["skip_block_list"] == json.loads(json.dumps(preset["stg_blocks"]))
    file = single_file()
    theirs, ours, text = _theirs(original, file), _ours(file, ltx_folders["0.9.5"]), _text()
    expected = theirs(
        **CALL, **_as_theirs(text), **_FIXED, **guidance, num_inference_steps=num_steps,
        skip_block_list=_within(stated["skip_block_list"]), skip_layer_strategy=_strategy(), generator=_seed(),
    ).images  # fmt: skip
    presets = {"original": {**preset, "stg_blocks": _within(preset["stg_blocks"])}}
    ours.register_to_config(defaults={**ours.config.defaults, "presets": presets})
    call = {**CALL, **text, "num_inference_steps": num_steps, "output_type": "latent"}
    _compare(expected, ours(**call, preset="original", generator=_seed()).frames)
    plain = ours(**call, generator=_seed()).frames
    assert (plain - expected).abs().max() > 0.01
