"""Nonlinear conjugate directions: one file for each way to choose the step."""
