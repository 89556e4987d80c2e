"""Adapters to other packages' attribution methods, one file each. Imports what methods may import."""
