"""Block distribution, process grids and balanced assignment: pure arithmetic without MPI."""
