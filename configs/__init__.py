"""YAML recipes: models, training, sampling."""

if __name__ != "vgen.configs":
    raise ImportError("import this package as vgen.configs, not as configs")
