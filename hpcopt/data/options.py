"""The keys of the job file's [data] table."""

from __future__ import annotations

from dataclasses import dataclass

from hpcopt.checks import is_number, is_whole
from hpcopt.data.batches import BatchGrowth
from hpcopt.errors import UsageError, nearest

TASKS = ("classification", "regression")
STANDARDIZE = ("feature", "channel", "global", "image")
AUGMENT = ("none", "crop_flip")
INPUTS = "inputs"
"""The value of ``target`` that asks for the inputs themselves."""


@dataclass(frozen=True)
class DataOptions:
    """Which data set, which part of it, how it is scaled and cut into batches.

    Raises:
        UsageError: a value is of the wrong type or out of its range.
    """

    source: str
    """A set by name (`hpcopt data list`), a file with an ending of ``hpcopt.data.files.SUFFIXES``, or
    'package.module:function' (see hpcopt.data.user)."""

    root: str | None = None
    """Folder with the set's files, or with a sub-folder of the set's name; else the variable HPCOPT_DATA."""

    target: str | int | list[str] | list[int] | None = None
    """Which column is the label or target: "first", "last", a column's name or number (from 0), or a list of names or
    numbers for several targets. In .h5, .npz and .mat files also the name of the array. "inputs": all numbers of the
    input itself, as they are scaled, in place of the set's own targets. Default: the column named label, class or
    target, else the last; in array files the array named targets, labels or y."""

    inputs: str | None = None
    """In .h5, .npz and .mat files: the name of the array of inputs. Default: inputs, x, images, data or features."""

    task: str | None = None
    """"classification" or "regression". Default: classification where a single target column holds integers with at
    most 100 different values, else regression."""

    classes: int | None = None
    """Number of classes. Labels must then be 0 .. classes-1. Default: the different labels of the training set, in
    ascending order, become the classes 0, 1, ..."""

    test: str | float | int | bool | None = None
    """The test set: a file, a fraction between 0 and 1 (drawn from the run's seed), a number n (the last n samples), or
    false for none. Default: the set's own test set; for a file NAME_train.* its partner NAME_test.*, if it is there."""

    batch: int | str = "full"
    """Samples in a batch over all ranks, or "full" for the whole training set in every step."""

    overlap: float = 0.0
    """Fraction of a batch, at least 0 and less than 1, that it shares with the next one."""

    batch_growth: float = 1.0
    """What the batch is multiplied by, up to the whole set, when the training loss no longer falls; 1: never."""

    batch_growth_every: int = 3
    """Epochs between two looks at the training loss for `batch_growth`."""

    batch_growth_tolerance: float = 0.01
    """The batch grows when the training loss has not fallen by more than this since the last look."""

    standardize: bool | str | None = None
    """true: mean 0 and standard deviation 1 for each feature of a table, for each channel of images; "feature",
    "channel" or "global" choose; "image": each image by itself; false: as in the file (pixels of type uint8 as 0..1).
    But for "image" the numbers come from the training set. Default: true, but false for cdr, burgers and peaks, whose
    experiments use raw values."""

    augment: str = "none"
    """"crop_flip": in every epoch each training image, once it is scaled, is padded by 4 zeros on every side, cropped
    to its size at a random place, and mirrored with probability 1/2. Losses over whole sets are of the images as they
    are."""

    standardize_targets: bool | None = None
    """Regression: targets with mean 0 and standard deviation 1 too. Default: as `standardize`."""

    limit: int | None = None
    """Only the first n training samples. The test set is set aside before and stays as it is, so that runs of
    different limits are judged by the same samples."""

    shuffle: bool = False
    """Deal the training samples out in an order drawn from the seed, for files that are sorted by class: shards are
    contiguous, and without this a rank might own one class only. (mnist-5k, digits, cdr and burgers always are.)"""

    def __post_init__(self) -> None:
        """Check every key alone; what depends on the data is checked when it is loaded."""
        if not isinstance(self.source, str) or not self.source.strip():
            raise UsageError(
                f'data.source is {self.source!r}; it names the data set, for example "mnist-5k". '
                "`hpcopt data list` shows the names; a file or 'package.module:function' works as well."
            )
        self._check_target()
        self._check_inputs_as_targets()
        self._check_test()
        self._check_batch()
        _ = self.growth  # it checks its numbers
        self._one_of("task", self.task, TASKS)
        if isinstance(self.standardize, str):
            self._one_of("standardize", self.standardize, STANDARDIZE)
        elif self.standardize is not None and not isinstance(self.standardize, bool):
            raise UsageError(
                f"data.standardize is {self.standardize!r}; it must be true, false, or one of {', '.join(STANDARDIZE)}."
            )
        self._one_of("augment", self.augment, AUGMENT)
        self._at_least("classes", self.classes, 2)
        self._at_least("limit", self.limit, 1)
        for name in ("root", "inputs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UsageError(f"data.{name} is {value!r}; it must be text.")

    @property
    def batch_size(self) -> int | None:
        """The batch as a number, or None for the full set: what ``BatchPlan`` takes."""
        return None if isinstance(self.batch, str) else self.batch

    @property
    def growth(self) -> BatchGrowth:
        """When batches become larger."""
        return BatchGrowth(self.batch_growth, self.batch_growth_every, self.batch_growth_tolerance)

    def _check_target(self) -> None:
        entries = self.target if isinstance(self.target, list) else [self.target]
        if self.target is not None and not (entries and all(isinstance(e, str) or is_whole(e) for e in entries)):
            raise UsageError(
                f'data.target is {self.target!r}; it must be "first", "last", the name or the number of a'
                " column (from 0), or a list of names or numbers that is not empty."
            )

    def _check_inputs_as_targets(self) -> None:
        others = {"task": "regression", "classes": None, "standardize_targets": None, "augment": "none"}
        for key, fits in others.items():
            value = getattr(self, key)
            if self.target == INPUTS and value not in (None, fits):
                raise UsageError(
                    f'data.{key} is {value!r}, but with data.target = "inputs" the targets are the inputs as they are'
                    f" scaled and batches show them, which are numbers. Leave data.{key} out."
                )

    def _check_test(self) -> None:
        test = self.test
        rule = (
            "a file, a fraction between 0 and 1 (0.2 sets a fifth aside), a whole number n of samples (the last n),"
            " or false for no test set"
        )
        fits = (
            test is None
            or test is False
            or (isinstance(test, str) and bool(test))
            or is_whole(test, 1)
            or (isinstance(test, float) and 0.0 < test < 1.0)
        )
        if not fits:
            raise UsageError(f"data.test is {test!r}; it must be {rule}.")

    def _check_batch(self) -> None:
        if self.batch != "full" and not is_whole(self.batch, 1):
            raise UsageError(
                f'data.batch is {self.batch!r}; it must be a number of samples of at least 1, or "full"'
                " for all samples in every step."
            )
        if not is_number(self.overlap, 0, 1, open_high=True):
            raise UsageError(
                f"data.overlap is {self.overlap!r}; it must be a number of at least 0 and less than 1 (0.3 lets"
                " each batch take 30 % of the next one)."
            )

    @staticmethod
    def _one_of(key: str, value: str | None, known: tuple[str, ...]) -> None:
        if value is not None and value not in known:
            hint = nearest(value, known) if isinstance(value, str) else "."
            raise UsageError(f"data.{key} is {value!r}{hint} It must be one of {', '.join(known)}.")

    @staticmethod
    def _at_least(key: str, value: int | None, least: int) -> None:
        if value is not None and not is_whole(value, least):
            raise UsageError(f"data.{key} is {value!r}; it must be a whole number of at least {least}.")
