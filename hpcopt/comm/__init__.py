"""Everything between the ranks: the only package that imports mpi4py."""
