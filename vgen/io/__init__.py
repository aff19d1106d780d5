"""Pictures and videos from and to local files; see `vgen.io.media.video` and `vgen.io.media.images`."""
