"""Tables and pages of a paper's numbers beside ours. Requires neither torch nor Hydra."""
