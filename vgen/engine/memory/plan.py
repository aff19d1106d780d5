"""Where the models of a call are and how it works, so that it fits a budget: the fastest way, known beforehand.

A device holds the models that are needed, and what they compute. The ways to need less of it, in the order in which
they are tried: everything together; the branches of the guidance one after another; transformer and VAE in turn; the
transformer's blocks one by one. In each, texts are encoded on the device, block by block, or on the host, and the VAE
codes the clip in pieces along time, usual ones or smaller. All of these are exact. Only where none fits, blended tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from vgen.engine.memory.coding import CodingPlan, decoding_peak, encoding_peak, ways_of_coding
from vgen.engine.memory.offload import resident_bytes, weight_bytes
from vgen.engine.memory.steps import Work, denoising_peak, encoding_text_peak
from vgen.errors import OutOfMemoryError, bytes_text
from vgen.types import VideoShape

CUDA_CONTEXT: Final = 600_000_000
"""Bytes that CUDA and its libraries take for themselves; assumed, not measured."""

PLACES: Final = ("together", "in turn", "blocks")
"""How transformer and VAE share a device: both there; each when it works; the transformer block by block as well."""
TEXT_WAYS: Final = ("kept", "dropped", "blocks", "host")
"""How texts are encoded: by an encoder that stays on the device; by one that is there for a moment; by one whose blocks
are there for a moment each; on the host."""


@dataclass(frozen=True)
class Sizes:
    """What the parts of a model take, by configuration alone.

    Attributes:
        transformer, vae, text: without content, in the dtype that they will have; `text` is None where prompts come
            encoded.
        text_blocks: those of the text encoder.
        keep_text: the text encoder stays on the device.
    """

    transformer: Any
    vae: Any
    text: nn.Module | None = None
    text_blocks: tuple[nn.Module, ...] = ()
    keep_text: bool = False
    _known: dict[Any, int] = field(default_factory=dict, repr=False, compare=False)

    def denoising(self, work: Work, together: bool) -> int:
        """See `denoising_peak`; computed once."""
        key = ("denoise", work, together)
        if key not in self._known:
            self._known[key] = denoising_peak(self.transformer, work, together=together)
        return self._known[key]

    def encoding_text(self, work: Work) -> int:
        """See `encoding_text_peak`; computed once. Prompt and negative prompt are encoded together."""
        if self.text is None:
            return 0
        key = ("text", min(work.branches, 2) * work.clips, work.text_tokens)
        if key not in self._known:
            self._known[key] = encoding_text_peak(self.text, *key[1:])
        return self._known[key]

    def coding(self, peak: Callable[..., int], work: Work, room: int, device: str, tiles: bool) -> CodingPlan:
        """The VAE's way in `room`, the one that needs least if none fits; each is rehearsed once.

        Args:
            peak: decoding_peak or encoding_peak.
            work: the call.
            room: bytes above the weights.
            device: type of the one that it will work on.
            tiles: whether blended tiles may be used.
        """
        plans: list[CodingPlan] = []
        for frames, tile in ways_of_coding(self.vae, work.shape):
            if tile is not None and not tiles:
                break
            key = (peak.__name__, work.shape, work.clips, frames, tile, device)
            if key not in self._known:
                plan = CodingPlan(frames, tile, 0)
                self._known[key] = peak(self.vae, work.shape, work.clips, plan=plan, device=device)
            plans.append(CodingPlan(frames, tile, self._known[key]))
            if plans[-1].peak_bytes <= room:
                return plans[-1]
            if len(plans) > 1 and plans[-2].tile is not None and plans[-1].peak_bytes > 0.95 * plans[-2].peak_bytes:
                break  # the tiles are not what takes the rest
        return min(plans, key=lambda plan: plan.peak_bytes)


@dataclass(frozen=True)
class MemoryPlan:
    """A way that fits.

    Attributes:
        places: of PLACES.
        text: of TEXT_WAYS, or "none" where prompts come encoded.
        guidance_batching: as in the settings of a call.
        decoding, encoding: ways of the VAE; no encoding where nothing is given.
        vae_memory: bytes that the VAE may take above the weights, for the settings of a call.
        stages: most bytes on the device by stage, runtime included.
        host_bytes: weights that wait on the host.
        budget: what was allowed.
    """

    places: str
    text: str
    guidance_batching: str
    decoding: CodingPlan
    encoding: CodingPlan | None
    vae_memory: int
    stages: Mapping[str, int]
    host_bytes: int
    budget: int

    @property
    def peak(self) -> int:
        """Most bytes on the device."""
        return max(self.stages.values())

    @property
    def exact(self) -> bool:
        """Whether the clip is that of a device with room for everything, up to rounding."""
        return self.decoding.tile is None and (self.encoding is None or self.encoding.tile is None)

    def lines(self) -> list[str]:
        """For the screen."""
        where = {
            "together": "transformer and VAE together on the device",
            "in turn": "transformer and VAE on the device in turn",
            "blocks": "the transformer's blocks brought to the device one by one",
        }[self.places]
        texts = {
            "none": "prompts encoded already",
            "kept": "text encoder next to them",
            "dropped": "text encoder loaded to encode and dropped",
            "blocks": "text encoder's blocks brought to the device one by one, then dropped",
            "host": "text encoded on the host",
        }[self.text]
        branches = ", branches of the guidance one after another" if self.guidance_batching == "separate" else ""
        stages = ", ".join(f"{name} {bytes_text(size)}" for name, size in self.stages.items())
        host = f"; {bytes_text(self.host_bytes)} of weights wait on the host" if self.host_bytes else ""
        return [
            f"memory: {bytes_text(self.peak)} of {bytes_text(self.budget)} ({stages}){host}",
            f"  {where}; {texts}{branches}; clip decoded {_say(self.decoding)}",
        ]


def _say(plan: CodingPlan) -> str:
    if plan.num_frames is None and plan.tile is None:
        return "in pieces of the usual size"
    text = "in small pieces" if plan.num_frames is not None else "in pieces of the usual size"
    return text if plan.tile is None else f"{text}, in blended tiles of {plan.tile[1]} x {plan.tile[0]} (not exact)"


def choose_plan(sizes: Sizes, work: Work, budget: int, *, device: str, base: int) -> MemoryPlan:
    """The first way that fits.

    Args:
        sizes: of the model.
        work: the call.
        budget: bytes of the device that may be taken.
        device: "cpu" or "cuda"; on a CPU host and device are one, and nothing is gained by moving weights.
        base: bytes that are taken by the runtime already.
    Raises:
        OutOfMemoryError: nothing fits; `least` is what would do.
    """
    plan = find_plan(sizes, work, budget, device=device, base=base)
    if plan is not None:
        return plan
    least = min(
        (
            _try(sizes, work, budget, device, base, *way, tiles=tiles)
            for tiles in (False, True)
            for way in _ways(work, device)
        ),
        key=lambda plan: plan.peak,
    )
    stage = max(least.stages, key=lambda name: least.stages[name])
    error = OutOfMemoryError(
        f"memory={bytes_text(budget)} is too little: the least is {bytes_text(least.peak)} (to {stage}); "
        "give that much, fewer frames or a smaller size."
    )
    error.least = least.peak
    raise error


def find_plan(sizes: Sizes, work: Work, budget: int, *, device: str, base: int) -> MemoryPlan | None:
    """As `choose_plan`, but None where nothing fits: without rehearsing the VAE where weights or steps decide."""
    ways = [way for way in _ways(work, device) if not _is_hopeless(sizes, work, budget, base, *way)]
    for tiles in (False, True):
        for way in ways:
            plan = _try(sizes, work, budget, device, base, *way, tiles=tiles)
            if plan.peak <= budget:
                return plan
    return None


def _is_hopeless(sizes: Sizes, work: Work, budget: int, base: int, places: str, together: bool) -> bool:
    """Whether weights and pixels alone, or a step of the transformer, break a budget: no way of the VAE helps then."""
    _, in_loop, coding = _held(sizes, work, base, places)
    given = _clip_bytes(sizes.vae, work, 4) if work.encodes else 0
    if max(in_loop, coding + max(given, _finished_bytes(sizes.vae, work))) > budget:
        return True
    return in_loop + sizes.denoising(work, together) > budget


def _held(sizes: Sizes, work: Work, base: int, places: str) -> tuple[int, int, int]:
    """Bytes of runtime and weights on the device: all the time, while denoising, and while the VAE works."""
    vae, whole = weight_bytes(sizes.vae), weight_bytes(sizes.transformer)
    small = resident_bytes(sizes.transformer, sizes.transformer.transformer_blocks)
    kept = weight_bytes(sizes.text) if sizes.text is not None and sizes.keep_text else 0
    always = base + kept + {"together": whole + vae, "in turn": 0, "blocks": small}[places]
    moved = vae if places != "together" else 0
    in_loop = always + {"together": 0, "in turn": whole, "blocks": 0}[places]
    # diffusers' hooks send a VAE that has encoded away only with the whole call
    return always, in_loop + (moved if work.encodes else 0), always + moved


def _ways(work: Work, device: str) -> Iterator[tuple[str, bool]]:
    for places in PLACES if device != "cpu" else PLACES[:1]:
        yield places, True
        if work.branches > 1:
            yield places, False


def _try(
    sizes: Sizes, work: Work, budget: int, device: str, base: int, places: str, together: bool, *, tiles: bool
) -> MemoryPlan:
    """One way, with the ways of text and VAE that fit the rest; where nothing fits, those that need least."""
    vae = weight_bytes(sizes.vae)
    text = weight_bytes(sizes.text) if sizes.text is not None else 0
    whole = weight_bytes(sizes.transformer)
    small = resident_bytes(sizes.transformer, sizes.transformer.transformer_blocks)
    always, in_loop, coding = _held(sizes, work, base, places)
    stages: dict[str, int] = {}
    way = "none"
    if sizes.text is not None:
        # An encoder that does not stay is done with before the other models come, where they come at all.
        others = always if sizes.keep_text or device == "cpu" else base + (small if places == "blocks" else 0)
        way, stages["encode the text"] = _text_way(sizes, work, budget - others, device, text)
        stages["encode the text"] += others
    encoding = None
    if work.encodes:
        clip = _clip_bytes(sizes.vae, work, 4)
        encoding = sizes.coding(encoding_peak, work, budget - coding - clip, device, tiles)
        stages["encode what is given"] = coding + clip + encoding.peak_bytes
    stages["denoise"] = in_loop + sizes.denoising(work, together)
    decoding = sizes.coding(decoding_peak, work, budget - coding, device, tiles)
    stages["decode"] = coding + max(decoding.peak_bytes, _finished_bytes(sizes.vae, work))
    host = 0
    if device != "cpu":
        host = {"together": 0, "in turn": whole + vae, "blocks": whole + vae}[places]
    batching = "batched" if together or work.branches == 1 else "separate"
    room = max(budget - coding, 1)
    return MemoryPlan(places, way, batching, decoding, encoding, room, stages, host, budget)


def _text_way(sizes: Sizes, work: Work, room: int, device: str, text: int) -> tuple[str, int]:
    """How texts are encoded in `room`, and what that takes on the device."""
    assert sizes.text is not None
    working = sizes.encoding_text(work)
    if sizes.keep_text:
        return "kept", working
    if device == "cpu":
        return "dropped", text + working
    blocks = resident_bytes(sizes.text, sizes.text_blocks)
    for way, needed in (("dropped", text + working), ("blocks", blocks + working)):
        if needed <= room:
            return way, needed
    return "host", 0


def _clip_bytes(vae: Any, work: Work, itemsize: int) -> int:
    frames, height, width = VideoShape.of_latent(work.shape, vae.strides)
    return work.clips * 3 * frames * height * width * itemsize


def _finished_bytes(vae: Any, work: Work) -> int:
    """The finished clip in float32, and twice more where given pixels are pasted into it."""
    return _clip_bytes(vae, work, 4 + (8 if work.encodes else 0))
