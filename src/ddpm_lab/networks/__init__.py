"""Networks: (x, t in 0..1000, condition) -> a tensor of the shape of x."""
