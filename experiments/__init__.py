"""Command-line programs: run.py trains one network; the others search, queue, compare and check runs."""
