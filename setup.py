"""Entry point of the build: what pyproject.toml cannot say, the library of sweeps in C."""

from setuptools import Extension, setup

# Without a compiler, or with one that does not know these options, hpcopt is installed without it: torch does its work.
# There is no Python inside, ctypes loads it. No contraction: the same bits with and without fused operations.
SWEEPS = Extension(
    "hpcopt.kernels._vectors",
    ["hpcopt/kernels/c/vectors.c"],
    depends=["hpcopt/kernels/c/sweeps.h"],
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp-simd"],
    optional=True,
)

setup(ext_modules=[SWEEPS])
