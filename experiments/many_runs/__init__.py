"""Starts several runs: grids, studies, cluster jobs. Imports no torch."""
