"""One clip on several processes."""
