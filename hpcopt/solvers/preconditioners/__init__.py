"""Estimates of the inverse of the curvature, behind one interface."""
