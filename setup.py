"""Entry point of the build: what pyproject.toml cannot say, the library in C."""

from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
SOURCES = sorted((ROOT / "hpcopt" / "kernels" / "c").glob("*.[ch]"))
# By this hpcopt/kernels/compiled.py finds out that the library is not of the sources beside it.
DIGEST = sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()
PATHS = [source.relative_to(ROOT).as_posix() for source in SOURCES]

# Without a compiler, or with one that does not know these options, hpcopt is installed without it: torch does its work.
# There is no Python inside, ctypes loads it. No contraction: the same bits with and without fused operations.
SWEEPS = Extension(
    "hpcopt.kernels._vectors",
    [path for path in PATHS if path.endswith(".c")],
    depends=PATHS,
    define_macros=[("SOURCES", f'"{DIGEST}"')],
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp-simd"],
    optional=True,
)

setup(ext_modules=[SWEEPS])
