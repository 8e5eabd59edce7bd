"""Lightning modules: where the pieces meet."""
