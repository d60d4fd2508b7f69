"""The trainable parts: a network of one backbone and one head, and the modules that train it."""
