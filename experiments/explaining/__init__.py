"""What a trained network sees: pictures of its filters, units, evidence and receptive fields."""
