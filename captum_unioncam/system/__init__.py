"""Helpers that do not concern attribution: errors that end a command, atomic writes, imports by name, versions.

Imports nothing else of the package, and no other package: every wing may use it.
"""
