"""The field's own scores: FVD, CLIP score, LPIPS. Each only from weights that the user has on this machine.

Nothing is downloaded, and nothing else is ever given these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vgen.errors import CheckpointError, ShapeError, VgenError
from vgen.training.data.clips import to_pixels
from vgen.training.data.sprites.world import answer_prompts
from vgen.training.evaluate.clip_score import ClipScore, check_clip_folder
from vgen.training.evaluate.lines import Line
from vgen.training.evaluate.model import Clips, ScoredModel
from vgen.training.losses.lpips import Lpips

Array = NDArray[np.float64]

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


def field_scores(model: ScoredModel, weights: FieldWeights) -> dict[str, Any]:
    """Score clips made from prompts of the test split, and next to them clips of the split itself.

    Args:
        model: its budget's `prompts` clips are made, one per prompt; LPIPS takes `clips` reconstructions.
        weights: which scores.
    Returns:
        {"fvd", "clip_score", "clip_score_of_originals", "lpips_of_reconstructions"} as far as there are weights, with
        "clips", "frames" and "tier".
    """
    world, budget = model.world(), model.budget
    found: dict[str, Any] = {"clips": budget.prompts, "frames": world.num_frames, "tier": model.tier}
    if weights.lpips is not None:
        found["lpips_of_reconstructions"] = _lpips(model, Lpips(weights.lpips))
    if weights.clip_model is None and weights.fvd_model is None:
        return found
    prompts = [prompt for prompt, _ in answer_prompts("test", model.tier, budget.prompts)]
    made: list[Clips] = []
    for numbers in _chunks(range(len(prompts)), budget.batch):
        made.extend(model.from_text([prompts[number] for number in numbers], numbers))
        model.kept.say(f"clips for the field's scores: {len(made)} of {len(prompts)}")
    originals = [clip.frames for clip in model.test_clips()]
    device = str(model.pipeline.device)
    if weights.clip_model is not None:
        clip = ClipScore(weights.clip_model, device)
        found["clip_score"] = float(clip(made, prompts).mean())
        found["clip_score_of_originals"] = float(clip(originals, prompts).mean())
    if weights.fvd_model is not None:
        features = I3d(weights.fvd_model, device)
        found["fvd"] = frechet_of_features(features(made), features(originals))
    return found


def field_lines(scores: dict[str, Any]) -> Iterator[Line]:
    """What the page and the screen show of `field_scores`."""
    clips = f"{scores['clips']}"
    if "fvd" in scores:
        yield Line(f"FVD, clips of {scores['frames']} frames", f"{scores['fvd']:.1f}", clips=clips)
    if "clip_score" in scores:
        ceiling = f"originals {scores['clip_score_of_originals']:.2f}"
        yield Line("CLIP score", f"{scores['clip_score']:.2f}", ceiling=ceiling, clips=clips)
    if "lpips_of_reconstructions" in scores:
        yield Line("LPIPS of VAE reconstructions", f"{scores['lpips_of_reconstructions']:.4f}")


class I3d:
    """Features of clips for FVD.

    Args:
        path: the TorchScript file.
        device: where to run.
    Raises:
        CheckpointError: the file is not TorchScript.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        try:
            self.model = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"fvd_model={str(path)!r} is not a TorchScript file: {str(error)[:200]}") from None
        self.path, self.device = path, device

    @torch.no_grad()
    def __call__(self, clips: list[Clips], batch: int = 8) -> Array:
        """uint8 [F, H, W, 3] each to [N, 400].

        Raises:
            CheckpointError: clips too short for I3D, or the file does not give its 400 features.
        """
        if len(clips[0]) < LEAST_FRAMES:
            raise CheckpointError(f"num_frames={len(clips[0])} is too short for FVD: I3D needs {LEAST_FRAMES} or more.")
        found = []
        for part in _chunks(clips, batch):
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
def _lpips(model: ScoredModel, lpips: Lpips) -> float:
    """The mean over reconstructions of test clips."""
    world, clips = model.world(), model.budget.clips
    total = 0.0
    for numbers in _chunks(range(clips), model.budget.batch):
        originals = np.stack([world.sample(index).frames for index in numbers])
        pixels = (to_pixels(torch.from_numpy(part)) for part in (originals, model.restored(originals)))
        total += float(lpips.clips(*pixels)) * len(numbers)
        model.kept.say(f"LPIPS: {numbers.stop} of {clips}")
    return total / clips


def _chunks(items: Any, size: int) -> list[Any]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def frechet_distance(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Between two normal distributions: |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2).

    Args:
        mean, other_mean: [D].
        covariance, other_covariance: [D, D], symmetric; they need not be invertible.
    Source: Dowson and Landau 1982, eq. 4.
    """
    linalg = _linalg()
    values, vectors = linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    between = linalg.eigvalsh(root @ other_covariance @ root).clip(min=0.0)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2.0 * np.sqrt(between).sum()
    return float(np.square(mean - other_mean).sum() + spread)


def frechet_of_features(features: Array, other: Array) -> float:
    """Between the normal distributions fitted to two sets of features.

    Args:
        features, other: [N, D] and [M, D], N and M at least 2.
    Raises:
        ShapeError: another rank, different D, or fewer than two rows.
    """
    if (
        features.ndim != 2
        or other.ndim != 2
        or features.shape[1] != other.shape[1]
        or min(map(len, (features, other))) < 2
    ):
        raise ShapeError(f"features {features.shape} and {other.shape}: give [N, D] and [M, D], two rows or more each.")
    first, second = (np.asarray(part, dtype=np.float64) for part in (features, other))
    fitted = [(part.mean(axis=0), np.atleast_2d(np.cov(part, rowvar=False))) for part in (first, second)]
    return frechet_distance(*fitted[0], *fitted[1])


def _linalg() -> Any:
    try:
        from scipy import linalg
    except ImportError:
        raise VgenError("Frechet distances (FVD) need scipy: pip install 'vgen[train]'.") from None
    return linalg
