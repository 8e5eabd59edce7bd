"""The commands train, sample, evaluate and report."""
