"""Video files: opening, decoding, timing and writing them."""
