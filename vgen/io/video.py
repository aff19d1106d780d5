"""Reading and writing clips: the names that the rest of the project uses."""

from vgen.io.output import OutputKind, check_output, check_output_size, output_kind
from vgen.io.probe import VideoInfo, probe, read_metadata
from vgen.io.video_read import VideoClip, read_video
from vgen.io.video_write import write_video

__all__ = [
    "OutputKind",
    "VideoClip",
    "VideoInfo",
    "check_output",
    "check_output_size",
    "output_kind",
    "probe",
    "read_metadata",
    "read_video",
    "write_video",
]
