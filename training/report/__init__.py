"""A run's log, trackers and plots."""
