"""Model passes, and what a layer computed. Knows no attribution method.

Imports torch and captum alone, and nothing else of the package.
"""
