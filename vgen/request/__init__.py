"""What is asked for: settings, tasks, sizes and steps, checked without torch and with nothing loaded."""
