from __future__ import annotations

import random
from pathlib import Path

import h5py
import numpy as np

from hpcopt.checkpoint.image import PAGE, Scalar, Slab, SparseImage, build_image


def slab(path: str, array: np.ndarray) -> Slab:
    return Slab(path, array, array.dtype.str, (9, *array.shape), (3,) * (array.ndim + 1), array.shape, "m", "a length")


def test_an_image_behaves_like_a_file(tmp_path: Path) -> None:
    choose = random.Random(5)
    image = SparseImage()
    with open(tmp_path / "file", "w+b") as file:
        for _ in range(300):
            position, length = choose.randrange(5 * PAGE), choose.randrange(2 * PAGE)
            data = choose.randbytes(length)
            for target in (image, file):
                target.seek(position)
                if length % 3:
                    target.write(data)
                elif length % 7 == 0:
                    target.truncate(position)
            for target in (image, file):
                target.seek(position // 2)
            assert image.read(length) == file.read(length)
        file.seek(0)
        assert image.at(0, image.size) == file.read()


def test_room_for_arrays_takes_no_memory() -> None:
    large = np.broadcast_to(np.float32(1), (10**10,))
    image, places = build_image([slab("large", large)], [], {})
    assert image.size > large.nbytes
    assert len(image._pages) < 20
    assert places[0][0] % PAGE == 0, "large arrays begin on a page"


def test_the_file_is_one_for_any_hdf5(tmp_path: Path) -> None:
    arrays = {"a/x": np.arange(5.0), "a/y": np.arange(30_000, dtype=np.int32), "m": np.array([True, False])}
    slabs = [slab(path, array) for path, array in arrays.items()]
    slabs += [slab("none", np.zeros((0, 2))), slab("one", np.array(2.5))]
    scalars = [Scalar("s/text", "Maß", "1", "a word"), Scalar("s/flag", True, "1", ""), Scalar("s/count", -3, "B", "")]
    image, places = build_image(slabs, scalars, {"schema": 1, "run": "abc"})
    content = b""
    for offset, place in places:
        content += image.at(len(content), offset) + place.data.tobytes()
    (tmp_path / "file.h5").write_bytes(content + image.at(len(content), image.size))
    with h5py.File(tmp_path / "file.h5") as file:
        assert dict(file.attrs) == {"schema": 1, "run": "abc"}
        assert all(
            (file[path][()] == array).all() and file[path].dtype == array.dtype for path, array in arrays.items()
        )
        assert file["none"].shape == (0, 2)
        assert file["one"][()] == 2.5
        assert (file["s/text"].asstr()[()], file["s/flag"][()], file["s/count"][()]) == ("Maß", True, -3)
        attributes = dict(file["a/x"].attrs)
        assert [list(attributes.pop(name)) for name in ("global_shape", "start", "count")] == [[9, 5], [3, 3], [5]]
        assert attributes == {"unit": "m", "meaning": "a length"}
        assert dict(file["s/text"].attrs) == {"unit": "1", "meaning": "a word"}
