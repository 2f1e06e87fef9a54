"""Checkpoints: written by all ranks, published whole or not at all, read with or without MPI on any number of ranks."""
