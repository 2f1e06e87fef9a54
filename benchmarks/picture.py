"""The picture in README.md, from the tables of three reports in benchmarks/results.

    python benchmarks/picture.py [--output docs/images/results.png]

Left: test accuracy of Newton with nothing tuned, less that of Adam at the best of five learning rates, in equal seconds
(newton-accuracy.md; the best rate is chosen by this very accuracy). Right: test accuracy at the work of ten gradients
of the training set, less that of NLCG with nothing tuned, of other methods at the best of five rates (nlcg-mnist.md,
nlcg-cifar10.md).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LEFT_END = -5.0
"""Points; what lies further to the left is drawn as an arrow at this place."""
NAMES = {"nlcg": "NLCG", "adam": "Adam", "sgd": "SGD, momentum", "lars": "LARS", "lbfgs": "L-BFGS", "mnist": "MNIST",
         "cifar10": "CIFAR-10", "higgs_11k": "higgs, 11,000 rows"}  # fmt: skip
OURS, OTHERS = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Gap:
    """A set: test accuracy in % of Newton, and of Adam at each of its rates after Newton's seconds."""

    name: str
    newton: float
    adam: dict[str, float]

    @property
    def best(self) -> float:
        """Adam's at the best rate."""
        return max(self.adam.values())


def main() -> None:
    """Read the three reports and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/images/results.png")
    args = parser.parse_args()
    beside_nlcg = {name: nlcg_accuracies(_report(f"nlcg-{name}")) for name in ("mnist", "cifar10")}
    draw(newton_gaps(_report("newton-accuracy")), beside_nlcg, args.output)


def rows(text: str, first: str) -> list[dict[str, str]]:
    """The rows of the first table of a report whose first column begins with ``first``, by the names of the columns."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in _until_empty(lines[start:])]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def newton_gaps(text: str) -> list[Gap]:
    """What Newton and Adam came to on each set, in the order of the report."""
    found: dict[str, dict[str, float]] = {}
    for row in rows(text, "set: method"):
        name, method = row["set: method, rate"].split(": ")
        found.setdefault(name, {})[method] = float(row["% after newton's seconds"])
    return [Gap(name, methods.pop("newton"), methods) for name, methods in found.items()]


def nlcg_accuracies(text: str) -> dict[str, float]:
    """Test accuracy in % at the work of ten gradients, of each method at its best rate."""
    return {row["method, rate"].split(",")[0]: float(row["% at 10"]) for row in rows(text, "method, rate")}


def draw(gaps: list[Gap], beside_nlcg: dict[str, dict[str, float]], path: str) -> None:
    """Both panels, in letters that can be read at half the size; the second from accuracies by set and method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 15, "axes.titlesize": 15.5, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5.6), width_ratios=(1.35, 1), layout="constrained")
    _draw_gaps(left, gaps)
    _draw_beside_nlcg(right, beside_nlcg)
    figure.savefig(path, dpi=120)


def _draw_gaps(axes: Any, gaps: list[Gap]) -> None:
    axes.axvline(0, color="0.4", linewidth=1)
    for place, gap in enumerate(reversed(gaps)):
        points = [value - gap.best for value in gap.adam.values()]
        inside = [x for x in points if x >= LEFT_END]
        axes.plot(inside, [place] * len(inside), "o", color=OTHERS, markersize=9, alpha=0.75, linestyle="none")
        if len(inside) < len(points):
            axes.plot(LEFT_END - 0.15, place, "<", color=OTHERS, markersize=11, clip_on=False)
        axes.plot(gap.newton - gap.best, place, "D", color=OURS, markersize=12)
        axes.text(1.8, place, f"{gap.newton:.2f}", color=OURS, va="center")
        axes.text(2.9, place, f"{gap.best:.2f}", color=OTHERS, va="center")
    axes.set_yticks(range(len(gaps)), [NAMES.get(gap.name, gap.name) for gap in reversed(gaps)])
    axes.set_xlim(LEFT_END - 0.3, 3.8)
    axes.set_xticks(range(-5, 2))
    axes.set_xlabel("points of test accuracy beside Adam at the best of its five rates")
    axes.set_title("Newton, nothing tuned (diamonds), and Adam\nat five rates (dots), in equal seconds", loc="left")


def _draw_beside_nlcg(axes: Any, accuracies: dict[str, dict[str, float]]) -> None:
    methods = [name for name in next(iter(accuracies.values())) if name != "nlcg"][::-1]
    for (name, found), marker in zip(accuracies.items(), "os", strict=True):
        gaps = [found[method] - found["nlcg"] for method in methods]
        label = f"{NAMES[name]}, NLCG {found['nlcg']:.2f} %"
        axes.plot(
            gaps, range(len(methods)), marker, markersize=11, linestyle="none", color=OTHERS, alpha=0.75, label=label
        )
        for place, method in enumerate(methods):
            axes.text(gaps[place], place + 0.17, f"{found[method]:.2f}", color=OTHERS, ha="center")
    axes.axvline(0, color=OURS, linewidth=3)
    axes.set_yticks(range(len(methods)), [NAMES[method] for method in methods])
    axes.set_xlim(-13, 0.5)
    axes.set_ylim(-0.4, len(methods) + 0.55)
    axes.legend(loc="upper left", frameon=False)
    axes.set_xlabel("points of test accuracy beside NLCG")
    axes.set_title("NLCG, nothing tuned (line), others\nat their best rates, in equal work", loc="left")


def _report(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def _until_empty(lines: list[str]) -> list[str]:
    return lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]


if __name__ == "__main__":
    main()
