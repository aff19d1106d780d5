"""Operations and memory of training, and how fast a run is."""
