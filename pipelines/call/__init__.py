"""A call's settings, checks, conventions, schedule and guidance."""
