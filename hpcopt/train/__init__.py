"""The training loop, its record and run directory, and jobs from file to result."""
