"""The command line: flags, checks of settings, known names, printing and exit codes. Imports no torch."""
