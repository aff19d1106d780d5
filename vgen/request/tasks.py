"""The tasks of a request: their names, and which fields belong to which."""

from __future__ import annotations

TASKS = ("generate", "animate", "interpolate", "predict", "loop", "inpaint", "outpaint", "extend", "story", "restyle")

TASKS_OF: dict[str, tuple[str, ...]] = {
    "image": ("animate", "loop", "story"),
    "first": ("interpolate",),
    "last": ("interpolate",),
    "video": ("predict", "restyle", "inpaint", "outpaint", "extend"),
    "seconds": ("extend",),
    "overlap": ("extend", "story"),
    "reference": ("extend", "story"),
    "segments": ("story",),
    "mask": ("inpaint",),
    "keep_frames": ("predict",),
    "backward": ("predict",),
    "keyframes": ("interpolate",),
    "denoise_strength": ("restyle",),
    "draft_steps": ("generate",),
    "input_crf": ("animate", "interpolate", "predict", "loop"),
}
"""Fields that only some tasks have."""

NEEDED: dict[str, tuple[str, ...]] = {
    "image": ("animate",), "first": ("interpolate",), "last": ("interpolate",), "mask": ("inpaint",),
}  # fmt: skip
NEEDED |= {"video": TASKS_OF["video"], "seconds": ("extend",), "segments": ("story",)}
"""What a task cannot do without."""
