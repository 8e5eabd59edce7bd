"""Tables and pages of a paper's numbers next to ours. Requires neither torch nor Hydra."""
