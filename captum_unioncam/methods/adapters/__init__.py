"""Other packages' attribution methods, called as this package's: a file for each package. Imports as methods does."""
