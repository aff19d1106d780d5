"""Reading and writing clips: the names that the rest of the project uses."""

from vgen.io.media.codec.probe import VideoInfo, probe, read_metadata
from vgen.io.media.codec.read import VideoClip, read_video
from vgen.io.media.codec.write import write_video
from vgen.io.media.output import OutputKind, check_output, check_output_size, output_kind

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
