"""Errors, distributed helpers, atomic files, safe loading: no torch model is known here."""
