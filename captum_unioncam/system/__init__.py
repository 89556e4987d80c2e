"""What is no business of attribution: errors that end a command, files written whole, imports by name, versions.

Imports nothing of the package. The library (engine, attr, metrics) does without it.
"""
