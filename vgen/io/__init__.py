"""Pictures and videos from and to local files; see `vgen.io.video` and `vgen.io.images`."""
