"""The hot products of a network and work on long vectors, behind one interface an array library."""
