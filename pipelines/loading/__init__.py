"""From a folder, a file or a name to a pipeline with its weights."""
