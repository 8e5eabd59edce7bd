"""Programs beside the four verbs."""
