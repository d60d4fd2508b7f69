"""Region-based detection before it was trained end to end: features, support vector machines, box regression."""
