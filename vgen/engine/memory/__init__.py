"""How much memory a call needs, and the fastest way that fits a budget."""
