"""Numbers and images of samples. Nothing here knows a model: it takes images."""
