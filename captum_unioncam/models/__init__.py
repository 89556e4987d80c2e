"""Classifiers by name, with weights, preprocessing, class names and the layer to explain.

Imports attr, engine, demo and system.
"""
