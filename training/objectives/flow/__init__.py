"""Flow matching: from nothing, and fine-tuning."""
