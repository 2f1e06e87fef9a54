"""Models whose last layer is linear, so that a method can solve for it."""
