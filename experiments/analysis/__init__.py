"""Measurements of networks and data outside training."""
