"""Running jobs: events out, cancelling in, a written clip at the end; and a runner that keeps pipelines loaded."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vgen import events
from vgen.errors import Cancelled, VgenError
from vgen.events import Observer
from vgen.jobs import processes
from vgen.jobs.call import make_frames, out_of_memory
from vgen.jobs.contents import contents
from vgen.jobs.load import load_pipeline, settle_machine
from vgen.jobs.long_clip import make_windows_left, open_take, steps_left, versions
from vgen.jobs.plan import Job
from vgen.jobs.steps import StepSequence
from vgen.jobs.upscale import load_two_pass
from vgen.request.request import ResolvedRequest

_POLL = 0.1
"""Seconds between two looks at `cancelled` while a job waits for its turn."""


@dataclass(frozen=True)
class Result:
    """A clip that was made.

    Attributes:
        path: where it is.
        request: everything that made it, device and dtype included.
        num_frames: of the clip.
        notes: sentences about what was done to the inputs.
        seconds: that it took, loading included.
    """

    path: Path
    request: ResolvedRequest
    num_frames: int
    notes: tuple[str, ...]
    seconds: float


def run(
    job: Job, on_event: Observer | None = None, cancelled: Callable[[], bool] | None = None, *, previews: bool = False
) -> Result:
    """Load a job's model, make its clip and write it; nothing stays loaded. See `Runner.run`."""
    with Runner(keep=0) as runner:
        return runner.run(job, on_event, cancelled, previews=previews)


class Runner:
    """Runs jobs one after another, and keeps the pipelines that were used last.

        >>> with Runner() as runner:
        ...     for job in jobs:
        ...         runner.run(job)

    Pipelines are identified by the content of model, text encoder and LoRAs, by device and dtype, and by every setting
    that changes a loaded model. Threads may share a runner: their jobs wait for each other.

    Args:
        keep: pipelines that stay loaded; the least recently used one goes first.
    """

    def __init__(self, keep: int = 1) -> None:
        self._keep, self._lock = keep, threading.Lock()
        self._pipelines: OrderedDict[Any, Any] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def num_loaded(self) -> int:
        """Pipelines that are loaded now."""
        return len(self._pipelines)

    def release(self) -> None:
        """Drop every loaded pipeline and upsampler, and give their memory back."""
        with self._lock:
            load_two_pass.cache_clear()
            self._shrink(0)

    def run(
        self,
        job: Job,
        on_event: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
        *,
        previews: bool = False,
        prompts: Sequence[str] | None = None,
    ) -> Result:
        """Make a job's clip and write it.

        Args:
            job: of `vgen.jobs.plan.plan`.
            on_event: called with every event; it may raise to end the job.
            cancelled: looked at within each step, between transformer blocks and pieces of the VAE's work; once it is
                true the job ends.
            previews: whether `on_event` is given a `Preview` of every step.
            prompts: of jobs to come with the same model, encoded while its text encoder is loaded.
        Raises:
            Cancelled: `cancelled` was true; no clip was left, and the runner can be used further. Windows of a long
                clip are kept: the same job resumes after the last one.
            OutOfMemoryError: names what would help.
            VgenError: the model cannot be loaded, or the clip not be made or written.
        """
        emit = on_event or (lambda event: None)
        emit(events.Queued())
        try:
            with self._turn(cancelled):
                return self._carry_out(job, emit, cancelled, previews, prompts)
        except (Cancelled, KeyboardInterrupt):
            emit(events.Cancelled())
            raise
        except Exception as error:
            emit(events.Failed(str(error), error.exit_code if isinstance(error, VgenError) else 1))
            raise

    @contextmanager
    def _turn(self, cancelled: Callable[[], bool] | None) -> Iterator[None]:
        """Wait until no other job runs."""
        while not self._lock.acquire(timeout=_POLL):
            _check(cancelled)
        try:
            yield
        finally:
            self._lock.release()

    def _carry_out(
        self,
        job: Job,
        emit: Observer,
        cancelled: Callable[[], bool] | None,
        previews: bool,
        prompts: Sequence[str] | None,
    ) -> Result:
        started, long = time.monotonic(), job.inputs.long
        take = None
        if long is not None:
            emit(events.Reading(job.request.model))
            take, notes = open_take(job, long)
            seeded = job.request.model_copy(update={"seed": take.seed})
            job, prompts = replace(job, request=seeded, notes=(*job.notes, *notes)), long.prompts
        for note in job.notes:
            emit(events.Note(note))
        _check(cancelled)
        if not self._pipelines:  # said before torch is imported
            emit(events.Loading(job.request.model))
        job = replace(job, request=settle_machine(job.request))
        pipe = self._pipeline(job, emit, prompts)
        import torch

        request, calls = job.request, 2 if job.inputs.closes and not job.inputs.known else 1
        expected: list[int | None] = [None] * calls
        if long is not None and take is not None:
            expected = [*steps_left(long, take, request.num_inference_steps)]
        steps = StepSequence(emit, expected)
        try:
            with _watched(pipe, steps, cancelled, previews):
                if long is not None and take is not None:
                    make_windows_left(pipe, job, long, take, request.call_settings(), steps, emit)
                    frames: Any = take.frames
                else:
                    frames = make_frames(pipe, job, steps, emit)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise out_of_memory(request, error) from None
        path = _write(job, frames, emit, cancelled)
        if take is not None:
            take.remove()
        seconds = time.monotonic() - started
        if processes.leads():
            emit(_done(job, path, len(frames), seconds))
        return Result(path, request, len(frames), job.notes, seconds)

    def _pipeline(self, job: Job, emit: Observer, prompts: Sequence[str] | None) -> Any:
        """The job's pipeline: one that is loaded, perhaps for another task, or a new one."""
        key = _identity(job) if self._keep else None
        pipe = self._pipelines.pop(key, None)
        if pipe is None:
            if self._pipelines:
                emit(events.Loading(job.request.model))
                self._shrink(max(0, self._keep - 1))
            pipe = load_pipeline(job, prompts or [job.request.prompt], lambda line: emit(events.Note(line)))
            if prompts is not None:
                pipe.encode_ahead(prompts, job.request.negative_prompt)
        if self._keep:
            self._pipelines[key] = pipe
        return _for_task(pipe, job)

    def _shrink(self, most: int) -> None:
        if len(self._pipelines) <= most:
            return
        while len(self._pipelines) > most:
            self._pipelines.popitem(last=False)
        from vgen.engine.device import release_memory

        release_memory()


def _identity(job: Job) -> Any:
    """What a loaded pipeline depends on; a memory plan is one for the shape of a clip."""
    request = job.request
    files = contents(request, job.model.folder)
    planned = None
    if request.memory is not None:
        shape = (request.num_frames, request.height, request.width, request.num_branches)
        planned = (request.memory, request.task, shape, len(request.keyframes or ()))
    return (
        job.model.model_hash, str(files.get("text_encoder")), str(files.get("lora")), request.lora, planned,
        request.device, request.dtype, request.quantize, request.quantize_text, request.compile, request.text_cache,
        request.parallel,
    )  # fmt: skip


def _for_task(pipe: Any, job: Job) -> Any:
    """The pipeline as the class of a job, with the same models, and what its step cache needs."""
    if job.request.step_cache is not None and job.request.step_cache.startswith("magcache"):
        from vgen.engine.lossy.magnitudes import find_magnitudes

        pipe.magnitudes = find_magnitudes(job.model.folder)
    if type(pipe).__name__ == job.pipeline or not hasattr(pipe, "components"):
        return pipe
    import vgen.pipelines

    other = getattr(vgen.pipelines, job.pipeline).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    for name in ("placement", "branch_parallel", "magnitudes"):
        setattr(other, name, getattr(pipe, name))
    return other


@contextmanager
def _watched(pipe: Any, observer: Observer, cancelled: Callable[[], bool] | None, previews: bool) -> Iterator[None]:
    """Inside, the observer is given what calls of a pipeline do, and they can be cancelled."""

    def observe(event: events.Event) -> None:
        _check(cancelled)
        observer(event)

    before = getattr(pipe, "observer", None), getattr(pipe, "previews", False)
    pipe.observer, pipe.previews = observe, previews
    with ExitStack() as stack:
        if cancelled is not None:
            from vgen.engine.cancel import cancellable

            stack.enter_context(cancellable(pipe, lambda: _check(cancelled)))
        try:
            yield
        finally:
            pipe.observer, pipe.previews = before


def _check(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled("cancelled; no unfinished clip was left.")


def _write(job: Job, frames: Any, emit: Observer, cancelled: Callable[[], bool] | None) -> Path:
    """Write a clip with its request; of several processes the first does."""
    from vgen.io.media.video import write_video

    if not processes.leads():
        return Path(job.output)
    _check(cancelled)
    emit(events.Writing(job.output))
    request = job.request
    metadata = request.to_metadata(job.model.model_hash, versions(), contents(request, job.model.folder))
    return write_video(job.output, frames, request.frame_rate, metadata, job.overwrite, request.scale or 1)


def _done(job: Job, path: Path, num_frames: int, seconds: float) -> events.Done:
    files, request = [path] if path.is_file() else list(path.iterdir()), job.request
    return events.Done(
        job.output, num_frames, request.width, request.height, request.frame_rate, request.scale or 1,
        sum(file.stat().st_size for file in files), seconds, request.seed, request.model,
    )  # fmt: skip
