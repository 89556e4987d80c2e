"""The command ``captum-unioncam``.

May import everything but the app's page; imports what is slow to import only when it is to run.
"""
