"""The ten sets of the comparison, the methods on them, and the rule that picks one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A set, its network and the work that every method is given.

    Attributes:
        source: the set, as ``hpcopt data list`` names it.
        samples: to train.
        budget: gradient equivalents at which methods are compared.
        settings: of data, network and loss, the same for all methods.
        classes: 0 where numbers are to be predicted, which are judged by explained variance.
        modest: whether its network is so small that the Jacobian of a small batch fits into memory.
    """

    source: str
    samples: int
    budget: float
    settings: tuple[str, ...]
    classes: int = 0
    modest: bool = True

    @property
    def regression(self) -> bool:
        """Whether numbers are to be predicted."""
        return self.classes == 0

    @property
    def figure(self) -> str:
        """What a method is judged by, a column of a run's history."""
        return "test_explained_variance" if self.regression else "test_accuracy"

    @property
    def usual(self) -> int:
        """Samples of a batch for other packages: a fiftieth of all, from 32 to 256."""
        return min(256, max(32, self.samples // 50))

    @property
    def small(self) -> int:
        """Samples of a small batch: a fiftieth of all, at least 8."""
        return max(8, self.samples // 50)

    @property
    def large(self) -> int:
        """Samples of a large batch: an eighth of all."""
        return self.samples // 8

    @property
    def common(self) -> list[str]:
        """The settings that are the same for all methods."""
        return [f'data.source="{self.source}"', *self.settings]


NETWORK = ("model.widths=[128,64]", "loss.weight_decay=1e-3")
SPLIT = ("data.test=0.2", "data.shuffle=true")
"""A fifth is set aside where files have no test part; files may be sorted."""
MNIST = ("model.widths=[512,256]", "loss.weight_decay=1e-3")
CIFAR = ("model.widths=[512,512]", "loss.weight_decay=1e-3")

PROBLEMS = {
    "airfoil": Problem("airfoil_self_noise", 1202, 20, (*NETWORK, *SPLIT)),
    "cdr": Problem("cdr", 400, 20, (*NETWORK, "data.standardize=true")),
    "satimage": Problem("satimage", 4435, 20, NETWORK, classes=6),
    "usps": Problem("usps", 7291, 20, NETWORK, classes=10),
    "higgs": Problem("higgs_11k", 8787, 20, (*NETWORK, *SPLIT), classes=2),
    "letter": Problem("letter", 15000, 20, NETWORK, classes=26),
    "california": Problem("california_housing", 16512, 20, (*NETWORK, *SPLIT)),
    "covtype": Problem("covtype_first20k", 16000, 20, (*NETWORK, *SPLIT), classes=7),
    "mnist": Problem("mnist", 60000, 10, MNIST, classes=10, modest=False),
    "cifar10": Problem("cifar10", 50000, 10, CIFAR, classes=10, modest=False),
}


@dataclass(frozen=True)
class Method:
    """A method of hpcopt at its defaults.

    Attributes:
        title: as it stands in tables.
        batch: samples of a batch, or "full", for a set.
        least: gradient equivalents that an epoch takes at least: a run is long enough, and looked at about as often.
        own: what its job must say besides.
        exact: whether an epoch takes just that and the method follows the length of the run: it ends within the budget.
    """

    title: str
    batch: Callable[[Problem], int | str]
    least: float
    own: tuple[str, ...] = ()
    exact: bool = False

    def settings(self, problem: Problem) -> list[str]:
        """What a job on the set says of method, batch and length."""
        batch = self.batch(problem)
        given = f'"{batch}"' if isinstance(batch, str) else str(batch)
        epochs = problem.budget / self.least
        length = math.floor(epochs + 1e-9) if self.exact else math.ceil(epochs)
        every = 1 if self.exact else 1 / self.least
        return [f"run.epochs={length}", f"run.evaluate_every={every:.3g}", f"data.batch={given}", *self.own]


METHODS = {
    "newton": Method("Newton", lambda p: p.large, 2.0, ("solver.name=newton",)),
    "nlcg": Method("NLCG", lambda p: p.small, 2.0, ("solver.name=nlcg",)),
    "apts": Method("APTS", lambda p: p.large, 7.0, ("solver.name=apts",)),
    "slimtrain": Method(
        "slimTrain", lambda p: p.small, 4 / 3, ("solver.name=slimtrain", "loss.name=squared"), exact=True
    ),
    "trust_region": Method("trust region", lambda _: "full", 1.0, ("solver.name=trust_region",)),
}

AIM_SETS, AIM_BEHIND = 8, 0.005
RULE = "slimTrain for numbers and for up to ten classes in modest networks, else NLCG"


def rule_of_thumb(problem: Problem) -> str:
    """The method that the rule names for a set."""
    return "slimtrain" if problem.modest and problem.classes <= 10 else "nlcg"
