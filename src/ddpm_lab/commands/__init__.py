"""What the verbs do. Hydra is known only here; `main` imports nothing heavy."""
