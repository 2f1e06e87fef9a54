"""Test accuracy of Newton with nothing tuned beside Adam at its best of five rates, on six sets, in the same seconds.

    python benchmarks/newton/accuracy.py --root DIR [--sets letter satimage usps] [--iterations 100] [--ranks 2]

Both minimise the same loss of the same network. Newton makes at most --iterations iterations on full batches, on every
set with the same options, which are its defaults. Adam, on batches of --batch samples, gets the seconds of training
that Newton took at each of five rates, of which one is its default, and is evaluated as often; its accuracy at that
moment lies on a line between two evaluations. Seconds are those of training, without evaluations, so that the runs need
a quiet machine. They stay under --runs; one that is finished is read, not repeated. ``--set`` as for ``hpcopt run``,
for both methods; ``--newton`` likewise, for Newton. DIR holds the sets' files (hpcopt data list). ``--output FILE.md``
writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, percent, trained
from benchmarks.apts.against import DEFAULTS, RATES, Entry

SETS: dict[str, list[str]] = {
    "letter": [],
    "satimage": [],
    "usps": [],
    "mnist": [],
    "cifar10": [],
    "higgs_11k": ["data.test=0.2", "data.shuffle=true"],
}
"""Name -> what its files do not say."""
COMMON = ["model.widths=[512,256]", "loss.weight_decay=1e-3"]
LEAD = 1.5
"""Adam is given so much more than its pace says, so that its run is long enough where the machine slows down."""
AIM = 4
"""Sets on which Newton shall be at least as good."""


class Match(NamedTuple):
    """Both methods on one set: Newton, and Adam at every rate."""

    data: str
    newton: Entry
    adam: list[Entry]

    @property
    def seconds(self) -> float:
        """What Newton took, and Adam is given."""
        return self.newton.seconds

    @property
    def best(self) -> Entry:
        """Adam at the rate with the best test accuracy after these seconds."""
        return max(self.adam, key=lambda entry: entry.at(self.seconds))

    @property
    def gap(self) -> float:
        """Newton's test accuracy over that of Adam at its best, a fraction."""
        return self.newton.final - self.best.at(self.seconds)


def train(data: str, args: argparse.Namespace) -> Match:
    """Newton, a short run of Adam that shows its pace, and Adam at each rate."""
    common = [f'data.source="{data}"', f"run.seed={args.seed}", *COMMON, *SETS[data], *args.set]

    def run(name: str, settings: list[str]) -> dict[str, Any]:
        job, root = JOBS / "mnist-newton.toml", str(args.root.resolve())
        return trained(job, args.ranks, args.runs, f"{data}-{name}", root, [*common, *settings])

    def adam(rate: float, epochs: float) -> dict[str, Any]:
        settings = ["solver.name=adam", f"solver.learning_rate={rate}", f"data.batch={args.batch}"]
        settings += [f"run.epochs={epochs:.4g}", f"run.evaluate_every={max(epochs / args.iterations, 0.01):.4g}"]
        return run(f"adam-{rate:g}", settings)

    newton = Entry("newton", None, run("newton", [f"run.epochs={args.iterations}", *args.newton]))
    pace = adam(DEFAULTS["adam"], 2.0)
    epochs = LEAD * newton.seconds * pace["epochs"] / pace["seconds"]
    return Match(data, newton, [Entry("adam", rate, adam(rate, epochs)) for rate in RATES["adam"]])


def rows(match: Match) -> list[list[str]]:
    """One line for Newton and one for each rate of Adam."""
    found = []
    for entry in (match.newton, *match.adam):
        told = entry.told
        own = "" if entry.rate != DEFAULTS["adam"] else " (default)"
        found.append(
            [
                f"{match.data}: {entry.name}{own}",
                percent(entry.at(match.seconds)),
                percent(told["best"]["test_accuracy"]),
                "diverged" if entry.diverged else f"{told['final']['train_loss']:.4g}",
                f"{told['iterations']:,}",
                f"{told['work']['gradient_equivalents']:.0f}",
                f"{entry.seconds:.1f}",
            ]
        )
    return found


def summary(matches: list[Match]) -> list[str]:
    """One line a set, and whether the aim is met."""
    head = ["set", "seconds", "newton %", "adam %", "at rate", "gap", "adam untuned %"]
    lines = []
    for match in matches:
        default = next(entry for entry in match.adam if entry.rate == DEFAULTS["adam"])
        figures = [percent(x) for x in (match.newton.final, match.best.at(match.seconds))]
        untuned = percent(default.at(match.seconds))
        name = [match.data, f"{match.seconds:.1f}"]
        lines.append([*name, *figures, f"{match.best.rate:g}", f"{100 * match.gap:+.2f}", untuned])
    as_good = sum(match.gap >= 0 for match in matches)
    met = "met" if as_good >= AIM else "NOT met"
    aim = f" (aim: {AIM} of {len(SETS)}): {met}." if len(matches) == len(SETS) else "."
    return [*table(head, lines), "", f"Newton is at least as good on {as_good} of {len(matches)} sets{aim}"]


def report(matches: list[Match], args: argparse.Namespace) -> list[str]:
    """Both tables."""
    head = [
        "set: method, rate",
        "% after newton's seconds",
        "best %",
        "train loss",
        "iterations",
        "gradients",
        "seconds",
    ]
    return [
        f"Both: {', '.join([*COMMON, *args.set])}, ReLU, float32, {args.ranks} ranks, seed {args.seed}. Newton:"
        f" {', '.join(args.newton) or 'its defaults'}, full batches, at most {args.iterations} iterations. Adam:"
        f" batches of {args.batch}, constant rate; the rate is chosen by this very test accuracy. Sets differ in"
        " nothing but how their test samples are chosen. A run of fewer seconds than Newton's stands as it ended.",
        "",
        *summary(matches),
        "",
        "Gradients: all evaluations together in passes over the training set; a value counts a third. Seconds: of"
        " training, without evaluations.",
        "",
        *table(head, [row for match in matches for row in rows(match)]),
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--iterations", type=int, default=100, help="of Newton, at most")
    parser.add_argument("--batch", type=int, default=256, help="samples of a batch of Adam")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-accuracy"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--newton", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train on every set and report."""
    args = arguments()
    lines = report([train(data, args) for data in args.sets], args)
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/newton/accuracy.py{spelled(args)}"
        write_report(args.output, "Newton beside Adam: test accuracy in equal time", command, lines, args.ranks)


if __name__ == "__main__":
    main()
