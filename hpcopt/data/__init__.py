"""Data sets: where they come from, which part each rank owns, and which samples make up each batch."""
