"""The command ``captum-unioncam``.

May import every other wing. Slow imports are made inside the functions that need them.
"""
