"""A folder of footage as a data set: shots, captions, and what a model makes of them."""
