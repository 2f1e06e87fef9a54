"""Entry point of the build: what pyproject.toml cannot say, the library of sweeps in C."""

from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

SOURCES = ["hpcopt/kernels/c/sweeps.h", "hpcopt/kernels/c/vectors.c"]
# By this hpcopt/kernels/compiled.py finds out that the library is not of the sources beside it.
DIGEST = sha256(b"".join((Path(__file__).parent / source).read_bytes() for source in SOURCES)).hexdigest()

# Without a compiler, or with one that does not know these options, hpcopt is installed without it: torch does its work.
# There is no Python inside, ctypes loads it. No contraction: the same bits with and without fused operations.
SWEEPS = Extension(
    "hpcopt.kernels._vectors",
    SOURCES[1:],
    depends=SOURCES[:1],
    define_macros=[("SOURCES", f'"{DIGEST}"')],
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp-simd"],
    optional=True,
)

setup(ext_modules=[SWEEPS])
