"""The embedded model, example prompts and images."""

if __name__ != "vgen.assets":
    raise ImportError("import this package as vgen.assets, not as assets")
