"""The directory of a run: its files, its lock, its record, and the requests that reach it."""
