"""vgen."""
