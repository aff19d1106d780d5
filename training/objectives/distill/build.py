"""From a recipe to a distillation: the teacher, its trajectories and the student."""

from __future__ import annotations

from vgen.engine.speed.compile import compile_blocks
from vgen.hub.find import model_hash
from vgen.training.config.data import SpritesConfig
from vgen.training.data.clips import SpriteClips
from vgen.training.data.prompts import FilePrompts, Prompts, SpritePrompts
from vgen.training.objectives.distill.config import DistillObjectiveConfig, TrajectoryConfig
from vgen.training.objectives.distill.distill import DistillObjective
from vgen.training.objectives.distill.teacher import Teacher
from vgen.training.objectives.distill.trajectories import Trajectories, TrajectoryCache
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.loaded import load_frozen
from vgen.training.objectives.registry import Setup, builds, data_of


@builds(DistillObjectiveConfig)
def build(config: DistillObjectiveConfig, setup: Setup) -> tuple[DistillObjective, Trajectories]:
    """The student, its cached trajectories filled."""
    run = setup.run
    data = data_of(config, run, SpritesConfig)
    pipeline, place = load_frozen(setup, "teacher", config.teacher)
    if config.explicit_attention:
        use_explicit_attention(pipeline.transformer)
    if config.compile_blocks and setup.models.has_weights:
        compile_blocks(pipeline.transformer)
    teacher = Teacher(pipeline, config.num_steps, config.trajectories, config.guidance_scale)
    teacher_hash = model_hash(place)
    caches = []
    for split in ("train", "validation"):
        prompts: Prompts
        if config.prompts:
            prompts = FilePrompts(config.prompts)
        else:  # what is judged must be said
            complete = config.trajectories.judged or split == "validation"
            prompts = SpritePrompts(SpriteClips(data, split), complete)
        chosen, seed = config.trajectories, run.seed
        if split == "validation":
            longest = {max(chosen.text): config.validation_clips}
            chosen = TrajectoryConfig(**{**chosen.model_dump(), "text": longest, "first": {}, "judged": False})
            seed = run.seed + 1  # with a file of prompts only the noise is new
        cache = TrajectoryCache(chosen, teacher, teacher_hash, prompts, seed, setup.folder / "trajectories")
        setup.fill(cache)
        caches.append(cache)
    return DistillObjective(config, teacher, caches[1], run.seed), Trajectories(caches[0])
