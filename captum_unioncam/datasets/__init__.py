"""Data sets of labelled pictures, for evaluating attribution methods: listed when opened, read one picture at a time.

One file for each layout; ``open.py`` detects it. Imports demo and system.
"""
