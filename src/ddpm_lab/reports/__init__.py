"""Tables of a paper's numbers and ours, and the pages that show them. Neither torch nor Hydra is needed here."""
