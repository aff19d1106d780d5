"""One description of a job, shared by Python, the command and the metadata written into outputs.

`GenerateRequest` is what was asked; `resolve` fills in what was left out and gives a `ResolvedRequest`, which says
everything needed to make the same clip again. Neither imports torch or opens a file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ValidationError, model_validator

from vgen.errors import RequestError
from vgen.request.fields import finding
from vgen.request.lossy import LOSSY_FIELDS, spelled
from vgen.request.messages import worded
from vgen.request.resolve import check_amount, check_lists, frames_to_keep, frames_to_restyle, settle
from vgen.request.settings import AUTOMATIC, Inputs, Machine, Settings
from vgen.request.steps import skipped_steps
from vgen.request.two_pass_presets import PLAIN, preset_for, preset_named
from vgen.types import Strides, VideoShape

DENOISE_STRENGTH = 0.6
"""What restyle takes where nothing is said."""


class GenerateRequest(Settings, Machine, Inputs):
    """What was asked for: task, inputs, settings and machine, all as fields of this object; None is left out.

    >>> GenerateRequest.create(prompt="a red circle moves left", num_inference_steps="8").num_inference_steps
    8
    """

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """Build a request, with one readable error instead of pydantic's report.

        Raises:
            RequestError: every wrong field with its value, its range and the nearest legal value; an unknown field
                with the name that was probably meant.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise RequestError(worded(error, cls)) from None

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.task == "generate" and not self.prompt.strip():
            raise finding("prompt is empty: say what the clip shows, for instance 'a red circle moves to the left'.")
        if self.upscale_preset is not None and self.upscale is None:
            raise finding("upscale_preset does nothing without upscale: give an upsampler too.")
        for field, knob in self.knobs().items():
            value = getattr(self, field)
            if value is not None and knob.unplanned and self.memory is not None:
                raise finding(f"memory and {field} cannot be given together: {knob.unplanned}")
            if value is not None and knob.tasks and self.task not in knob.tasks:
                owner = " or ".join(", ".join(map(repr, knob.tasks)).rsplit(", ", 1))
                raise finding(f"{field}={value!r} belongs to task {owner}, not {self.task!r}.")
            if value is None and self.task in knob.needed:
                kind = {"seconds": "a number", "segments": "segments"}.get(field, "a local file")
                raise finding(f"{field} is missing: task {self.task!r} needs {kind} there.")
        return self

    @property
    def lossy(self) -> tuple[str, ...]:
        """What was asked for that changes the clip beyond rounding, "field=value"; empty is exact."""
        given = {name: getattr(self, name) for name in LOSSY_FIELDS}
        return tuple(f"{name}={spelled(value)}" for name, value in given.items() if value is not None)

    def resolve(
        self, defaults: Mapping[str, Any], strides: Strides, video_frames: int | None = None
    ) -> ResolvedRequest:
        """Fill in everything that was left out, and check the whole.

        Args:
            defaults: the model's, see `vgen.hub.find.model_defaults`, with those of its LoRAs over them.
            strides: the model's, see `vgen.hub.find.model_strides`.
            video_frames: frames of the given video, for tasks predict and restyle; bounds keep_frames and num_frames.
        Raises:
            ShapeError: sizes that do not fit the model's strides, or are too large; with what would fit.
            RequestError: a parameter that neither the request nor the model gives.
        """
        values, known = settle(self.model_dump(), defaults)
        known |= {"seed": secrets.randbelow(2**32), "denoise_strength": DENOISE_STRENGTH}
        if self.task in ("restyle", "inpaint", "outpaint") and video_frames is not None:
            known["num_frames"] = frames_to_restyle(
                self.num_frames, known.get("num_frames"), strides.temporal, video_frames
            )
        for name, knob in self.knobs().items():
            taken = knob.settled or (name in Settings.model_fields and knob.flag and self.task in knob.tasks)
            value = known.get(name, knob.last if knob.settled else None) if taken else None
            if value is None and knob.settled and name not in values:
                raise RequestError(f"{name} is not given, and the model has no default for it; give one.")
            if value is not None:
                values.setdefault(name, value)
        shape = VideoShape(values["num_frames"], values["height"], values["width"])
        shape.check(strides)
        check_amount(shape, strides)
        values.setdefault("keep_known_pixels", True)
        if self.upscale is not None:
            values["upscale_preset"] = self.upscale_preset or preset_for(known)
            _refuse_settled(values["upscale_preset"], self)
        if self.task == "predict":
            values["keep_frames"] = frames_to_keep(self.keep_frames, shape.num_frames, strides.temporal, video_frames)
        resolved, steps = ResolvedRequest.create(**values), values["num_inference_steps"]
        steps -= skipped_steps(steps, values.get("denoise_strength", 1.0))
        drafted = resolved.draft_steps if shape.num_frames > 1 else None
        for num_steps in {steps, drafted or steps} if self.upscale is None else ():  # two passes have their own
            check_lists(resolved, num_steps)
        return resolved


class ResolvedRequest(GenerateRequest):
    """A job with nothing left open: the same request on the same machine gives the same clip."""

    @model_validator(mode="after")
    def _check_settled(self) -> Self:
        missing = [name for name, knob in self.knobs().items() if knob.settled and getattr(self, name) is None]
        if missing:
            raise finding(" ".join(f"{name} is missing." for name in missing))
        return self

    def call_settings(self) -> dict[str, Any]:
        """What every call of a pipeline is given, whatever its task: all but prompt, length, noise and conditions."""
        values = {name: getattr(self, name) for name in Settings.model_fields if name not in _NOT_OF_EVERY_CALL}
        given = {name: value for name, value in values.items() if value is not None}
        return {**(AUTOMATIC if self.memory is None else {}), **given}

    def to_metadata(
        self,
        model_hash: str | None = None,
        versions: Mapping[str, str] | None = None,
        contents: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that is written into an output.

        Args:
            model_hash: see `vgen.hub.find.model_hash`.
            versions: of the libraries that took part.
            contents: hashes of LoRAs and other files that the clip depends on, by kind; empty where there are none.
        """
        values = {key: value for key, value in self.model_dump().items() if value is not None}
        lossy = {"lossy": list(self.lossy)} if self.lossy else {}
        hashes = {"contents": dict(contents)} if contents else {}
        return {**values, **lossy, **hashes, "model_hash": model_hash, "versions": dict(versions or {})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The request in an output's metadata.

        Raises:
            RequestError: something is missing, wrong or unknown.
        """
        about = ("model_hash", "versions", "lossy", "contents")
        fields = {key: value for key, value in metadata.items() if key not in about}
        return cls.create(**fields)


_NOT_OF_EVERY_CALL = ("num_frames", "preset", "keep_known_pixels")


def _refuse_settled(name: str, asked: GenerateRequest) -> None:
    """Refuse what the request asks for and the passes of a preset decide themselves."""
    for field in sorted(preset_named(name).settled):
        if getattr(asked, field, None) is not None:
            raise RequestError(
                f"{field}={getattr(asked, field)!r:.80} and upscale_preset={name!r} contradict each other: the preset "
                f"says it for both passes. Leave {field} out, or use upscale_preset={PLAIN!r}."
            )
