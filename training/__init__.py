"""Training: one loop, objectives and data sets next to it."""

if __name__ != "vgen.training":
    raise ImportError("import this package as vgen.training, not as training")
