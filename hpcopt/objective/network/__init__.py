"""A fully connected network that is cut over the ranks: none of them holds all of its variables or features."""
