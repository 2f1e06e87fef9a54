"""The methods as optimisers of torch: a loop of the user's own with ``loss.backward()`` stays as it is."""

from hpcopt.optim.apts import APTS

__all__ = ["APTS"]
