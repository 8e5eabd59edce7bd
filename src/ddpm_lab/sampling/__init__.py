"""From conditions to samples: codecs, cascades, class names."""
