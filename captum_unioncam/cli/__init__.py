"""The command ``captum-unioncam``.

May import every other wing. Imports what is slow to import only when it is to run.
"""
