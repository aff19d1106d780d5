"""What makes a loaded model fast or small, and only that."""
