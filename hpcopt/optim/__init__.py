"""The methods as optimisers of torch, for a training loop of the user's own."""

from hpcopt.optim.apts import APTS
from hpcopt.optim.newton import Newton
from hpcopt.optim.nlcg import NLCG
from hpcopt.optim.slimtrain import SlimTrain

__all__ = ["APTS", "NLCG", "Newton", "SlimTrain"]
