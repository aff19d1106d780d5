"""The benchmark: what is run (scenarios), who runs it (arms), how it is timed (measure), what is said (report)."""
