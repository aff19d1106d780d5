"""A call is a list of passes: draft, two passes."""
