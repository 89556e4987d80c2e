"""The demo page in the browser. May import every wing except the command."""
