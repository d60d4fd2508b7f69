"""What is measured of networks and data outside training."""
