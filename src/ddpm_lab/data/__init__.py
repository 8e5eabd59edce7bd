"""Data sets: functions that return `Splits`, and the data module that serves them in batches."""
