"""The trainable parts: a network of one backbone and one head, and the Lightning modules that train it."""
