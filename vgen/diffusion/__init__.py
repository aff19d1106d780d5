"""Flow matching: the path, its schedules, guidance, and conditions as known tokens. Knows no model."""
