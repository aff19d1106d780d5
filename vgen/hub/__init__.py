"""Model names to files on this machine, and what those files say; without torch."""
