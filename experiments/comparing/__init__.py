"""Finished runs beside each other: tables, pages, pictures. Imports no torch."""
