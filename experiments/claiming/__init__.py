"""Statements of papers: what each says, the runs that test it, and what they show."""
