"""Data: functions that return `Data`, one module each."""
