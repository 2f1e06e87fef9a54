from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hpcopt.analysis import plot
from hpcopt.analysis.history import open_run
from hpcopt.analysis.plot import plot_runs
from hpcopt.errors import UsageError
from tests.support.refusals import files_up_to
from tests.support.runs import write_run, write_start


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    drawn: list[Figure] = []
    real = plot._draw

    def draw(figure: Figure, runs: Any) -> None:
        real(figure, runs)
        drawn.append(figure)

    monkeypatch.setattr(plot, "_draw", draw)
    return drawn


def test_one_run_fills_four_panels(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([open_run(write_run(tmp_path / "a"))], tmp_path / "new" / "a.png")
    height, width, _ = imread(tmp_path / "new" / "a.png").shape
    assert (width, height) == (1650, 1080)
    assert [title.split(" in ")[0].split(",")[0] for title in titles(figures[0])] == [
        "Loss", "Test accuracy", "Trust-region radius", "Time",
    ]  # fmt: skip
    assert figures[0].axes[0].get_yscale() == "log"
    assert all(axes.lines or axes.patches for axes in figures[0].axes)


def test_several_runs_share_axes_in_work_and_a_legend_of_their_names(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [open_run(write_run(tmp_path / name, radius=name == "a", ranks=n)) for name, n in (("a", 3), ("b", 1))]
    plot_runs(runs, tmp_path / "both.png")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "b"]
    assert figures[0].axes[0].get_xlabel() == "work in gradient equivalents"
    assert titles(figures[0])[2] == "Trust-region radius / step size"
    assert [len(line.get_xdata()) for line in figures[0].axes[3].lines] == [3, 1]  # type: ignore[arg-type]


def test_regression_shows_the_explained_variance(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([open_run(write_run(tmp_path / "a", task="regression", radius=False))], tmp_path / "a.svg")
    assert titles(figures[0])[1].startswith("Explained variance")
    assert titles(figures[0])[2] == "Step size"


def test_a_run_without_scores_shows_the_gradient_norm(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([open_run(write_run(tmp_path / "a", task="regression", test=False))], tmp_path / "a.png")
    assert titles(figures[0])[1] == "Gradient norm"


@pytest.mark.parametrize(("epochs", "notes"), [(0, ["no iteration yet"]), (1, [])])
def test_a_run_that_is_just_going_is_drawn_with_a_note_of_what_it_lacks(
    tmp_path: Path, figures: list[Figure], epochs: int, notes: list[str]
) -> None:
    plot_runs([open_run(write_run(tmp_path / "a", epochs=epochs, status="running"))], tmp_path / "a.png")
    texts = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert [text for text in texts if text.startswith("no ")] == notes


def test_many_runs_and_many_ranks_are_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [open_run(write_run(tmp_path / f"run-{n}", epochs=2, ranks=n)) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 200)]
    plot_runs(runs, tmp_path / "all.png")
    plot_runs(runs[-1:], tmp_path / "last.png")
    assert [len(line.get_xdata()) for line in figures[0].axes[3].lines] == [
        run.ranks.seconds_step.shape[1] for run in runs
    ]  # type: ignore[arg-type]
    assert len(figures[1].axes[3].patches) == 2 * 200


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / "a", epochs=1)), open_run(write_start(tmp_path / "b"))]
    with pytest.raises(UsageError, match="'b' has no evaluation yet"):
        plot_runs(runs, tmp_path / "a.png")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", epochs=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="could not be written"):
        plot_runs([run], tmp_path / "file" / "a.png")
    with pytest.raises(UsageError, match=r"suffix such as \.png"):
        plot_runs([run], tmp_path / "a.wrong")
    with pytest.raises(UsageError, match=r"suffix such as \.png"):
        plot_runs([run], tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_without_space_an_earlier_figure_stays_and_nothing_is_left(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a"))
    target = tmp_path / "out" / "a.png"
    plot_runs([run], target)
    earlier = target.read_bytes()
    assert len(earlier) > 1 << 16
    words = r"could not be written: File too large\. Nothing of it is left"
    with files_up_to(1 << 16), pytest.raises(UsageError, match=words):
        plot_runs([run, run], target)
    assert [entry.name for entry in target.parent.iterdir()] == ["a.png"]
    assert target.read_bytes() == earlier
