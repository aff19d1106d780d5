"""Pictures and clips from and to local files."""
