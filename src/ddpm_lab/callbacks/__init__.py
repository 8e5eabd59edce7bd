"""Lightning callbacks, which do not change training: it is bit-for-bit the same without them."""
