"""Labelled pictures to evaluate attribution methods on: listed at once, read one picture at a time.

A file for each layout; ``open.py`` tells them apart. Imports demo and system.
"""
