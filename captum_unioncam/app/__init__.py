"""The page to try it all on in a browser. May import everything but the command."""
