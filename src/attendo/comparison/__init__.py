"""The grid of cells: run, resume, statistics."""
