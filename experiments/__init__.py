"""Programs: run.py trains one network; its siblings compare, predict and export."""
