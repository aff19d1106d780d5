"""The field's own scores: FVD, CLIP score, LPIPS. Each only from weights that the user has on this machine.

Nothing is downloaded, and nothing else is ever given these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vgen.errors import CheckpointError
from vgen.pipelines import TextToVideoPipeline
from vgen.training.data.clips import to_pixels
from vgen.training.data.sprites.world import SpriteWorld, answer_prompts
from vgen.training.evaluate.clip_score import ClipScore, check_clip_folder
from vgen.training.evaluate.frechet import frechet_of_features
from vgen.training.evaluate.resumable import Ledger
from vgen.training.evaluate.scores import Budget, Clips, canvas, chunks, generators, reconstruct
from vgen.training.losses.lpips import Lpips

I3D_FEATURES = 400
"""What the I3D of Kinetics-400 gives before its softmax; FVD is defined on it."""

LEAST_FRAMES = 9
"""I3D halves time three times and then needs two steps."""


class FieldWeights(NamedTuple):
    """Where the weights lie; None leaves a score out.

    Attributes:
        clip_model: folder of a CLIP, as transformers saves it.
        fvd_model: TorchScript file of the Kinetics-400 I3D (the one of StyleGAN-V). Such a file is a program: give only
            one that you trust.
        lpips: folder with VGG-16 and LPIPS heads, see vgen.training.losses.lpips.
    """

    clip_model: Path | None = None
    fvd_model: Path | None = None
    lpips: Path | None = None

    def check(self) -> None:
        """Refuse missing files before anything is computed.

        Raises:
            CheckpointError: names the file and what to do.
        """
        if self.clip_model is not None:
            check_clip_folder(self.clip_model)
        if self.fvd_model is not None and not self.fvd_model.is_file():
            raise CheckpointError(
                f"fvd_model={str(self.fvd_model)!r} is not there: FVD needs the TorchScript file of the Kinetics-400 "
                "I3D (i3d_torchscript.pt), which is not downloaded; give its path, or leave FVD out."
            )
        if self.lpips is not None:
            Lpips(self.lpips)


def field_scores(
    pipeline: TextToVideoPipeline,
    weights: FieldWeights,
    budget: Budget,
    seed: int,
    ledger: Ledger,
    tier: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Score clips made from the prompts of SpriteWorld's test split, beside clips of the split itself.

    Args:
        pipeline: the model.
        weights: which scores.
        budget: `prompts` clips are made, one a prompt; LPIPS takes `clips` reconstructions.
        seed: of the first clip; the others count up.
        progress: told after every batch.
        tier: of SpriteWorld.
        **settings: handed to the pipeline.
    Returns:
        {"fvd", "clip_score", "clip_score_of_originals", "lpips_of_reconstructions"} as far as there are weights, with
        "clips" and "frames".
    """
    world = SpriteWorld("test", tier, **canvas(pipeline))
    found: dict[str, Any] = {"clips": budget.prompts, "frames": world.num_frames, "tier": tier}
    if weights.lpips is not None:
        found["lpips_of_reconstructions"] = _lpips(pipeline, Lpips(weights.lpips), world, budget, ledger)
    if weights.clip_model is None and weights.fvd_model is None:
        return found
    prompts = [prompt for prompt, _ in answer_prompts("test", tier, budget.prompts)]
    made: list[Clips] = []
    for part in chunks(range(len(prompts)), budget.batch):
        texts = [prompts[index] for index in part]
        made.extend(pipeline(texts, generator=generators(seed, part), output_type="uint8", **settings).frames)
        ledger.say(f"clips for the field's scores: {len(made)} of {len(prompts)}")
    originals = [world.sample(index).frames for index in range(budget.prompts)]
    if weights.clip_model is not None:
        clip = ClipScore(weights.clip_model, str(pipeline.device))
        found["clip_score"] = float(clip(made, prompts).mean())
        found["clip_score_of_originals"] = float(clip(originals, prompts).mean())
    if weights.fvd_model is not None:
        features = I3d(weights.fvd_model, str(pipeline.device))
        found["fvd"] = frechet_of_features(features(made), features(originals))
    return found


class I3d:
    """Features of clips for FVD.

    Args:
        path: the TorchScript file.
        device: where to run.
    Raises:
        CheckpointError: the file is no TorchScript.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        try:
            self.model = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"fvd_model={str(path)!r} is not a TorchScript file: {str(error)[:200]}") from None
        self.path, self.device = path, device

    @torch.no_grad()
    def __call__(self, clips: list[Clips], batch: int = 8) -> NDArray[np.float64]:
        """uint8 [F, H, W, 3] each to [N, 400].

        Raises:
            CheckpointError: clips too short for I3D, or the file does not give its 400 features.
        """
        if len(clips[0]) < LEAST_FRAMES:
            raise CheckpointError(f"num_frames={len(clips[0])} is too short for FVD: I3D needs {LEAST_FRAMES} or more.")
        found = []
        for part in chunks(clips, batch):
            video = torch.from_numpy(np.stack(part)).permute(0, 4, 1, 2, 3).float().to(self.device)
            try:
                features = self.model(video, rescale=True, resize=True, return_features=True)
            except RuntimeError as error:
                raise CheckpointError(
                    f"fvd_model={str(self.path)!r} cannot be called as the I3D of FVD is: {str(error)[:200]}"
                ) from None
            if features.ndim != 2 or features.shape[1] != I3D_FEATURES:
                raise CheckpointError(
                    f"fvd_model={str(self.path)!r} gives features {tuple(features.shape)}: FVD is defined on the "
                    f"{I3D_FEATURES} of the Kinetics-400 I3D, and a distance on others must not be called so."
                )
            found.append(features.double().cpu().numpy())
        return np.concatenate(found)


@torch.no_grad()
def _lpips(pipeline: TextToVideoPipeline, lpips: Lpips, world: SpriteWorld, budget: Budget, ledger: Ledger) -> float:
    originals = np.stack([world.sample(index).frames for index in range(budget.clips)])
    total = 0.0
    for done, part in enumerate(chunks(originals, budget.batch)):
        first, second = (to_pixels(torch.from_numpy(clips)) for clips in (part, reconstruct(pipeline, part)))
        total += float(lpips.clips(first, second)) * len(part)
        ledger.say(f"LPIPS: {done * budget.batch + len(part)} of {len(originals)}")
    return total / len(originals)
