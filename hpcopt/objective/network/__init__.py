"""A fully connected network that is cut over a grid of ranks: no rank holds all of its variables or features."""
