"""Lightning modules, for training only."""
