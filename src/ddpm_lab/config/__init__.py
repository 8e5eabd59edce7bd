"""Hydra: composing, instantiating and validating configurations."""
