"""The files of runs: written and read. Imports no torch."""
