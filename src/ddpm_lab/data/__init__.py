"""Data: functions that return `ImageData`, one module each."""
