"""What is no business of attribution: errors that end a command, files written whole, imports by name, versions.

Imports nothing else of the package, and no other package: every wing may use it.
"""
