"""What a SpriteWorld clip shows, read from its pixels."""
