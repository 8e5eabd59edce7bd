"""Numbers and pictures of samples. Nothing here knows a model: it takes pictures."""
