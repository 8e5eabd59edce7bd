"""Programs besides the four commands."""
