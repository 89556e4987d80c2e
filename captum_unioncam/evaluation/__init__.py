"""Methods run on pictures and judged: one picture explained or compared, whole data sets evaluated, records kept.

Imports methods, metrics, models, datasets and what is below them.
"""
