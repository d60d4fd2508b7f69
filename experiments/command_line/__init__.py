"""What may be typed and how a program ends: flags, known names, progress, exit codes. Imports no torch."""
