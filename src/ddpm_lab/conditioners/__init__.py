"""Conditioners: from a batch to a `Condition`."""
