"""The picture of README.md shows what stands in the reports."""

from __future__ import annotations

from pathlib import Path

from benchmarks import picture
from tests.support.pages import ROOT


def report(name: str) -> str:
    return (ROOT / "benchmarks" / "results" / f"{name}.md").read_text()


def test_every_set_is_shown_with_all_rates_also_where_newton_loses() -> None:
    gaps = picture.newton_gaps(report("newton-accuracy"))
    told = picture.rows(report("newton-accuracy"), "set  ")
    assert [(gap.name, gap.newton, gap.best) for gap in gaps] == [
        (row["set"], float(row["newton %"]), float(row["adam %"])) for row in told
    ]
    assert [len(gap.adam) for gap in gaps] == [5] * 6
    assert [gap.name for gap in gaps if gap.newton < gap.best] == ["usps", "higgs_11k"]


def test_every_method_beside_nlcg_is_shown(tmp_path: Path) -> None:
    beside = {name: picture.nlcg_accuracies(report(f"nlcg-{name}")) for name in ("mnist", "cifar10")}
    assert [list(found) for found in beside.values()] == [["nlcg", "adam", "sgd", "lars", "lbfgs"]] * 2
    assert (beside["mnist"]["adam"], beside["cifar10"]["nlcg"]) == (97.21, 57.31)
    picture.draw(picture.newton_gaps(report("newton-accuracy")), beside, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 10_000
