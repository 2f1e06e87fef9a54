"""The curvature of a model as Kronecker factors and random signs, from samples that are spread over the ranks."""
