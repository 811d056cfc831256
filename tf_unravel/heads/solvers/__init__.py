"""The optimisation problems behind heads, free of labels and images."""
