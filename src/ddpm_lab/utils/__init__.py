"""Errors, distributed helpers, atomic files and safe loading, independent of any model."""
