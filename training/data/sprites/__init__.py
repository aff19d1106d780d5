"""SpriteWorld: captioned clips with an answer key; see `world.py`."""
