"""Run directories: loading, resuming, verifying."""
