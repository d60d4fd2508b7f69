"""The programs that a user runs; the folders below hold what they are made of."""
