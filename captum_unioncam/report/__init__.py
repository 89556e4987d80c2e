"""What was found, shown: statistics, tables, plots, panels and pages. Imports evaluation and what is below it."""
