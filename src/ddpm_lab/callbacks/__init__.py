"""Lightning callbacks. They observe: training is the same to the last bit without them."""
