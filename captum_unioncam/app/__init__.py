"""The web app. May import every wing except the command."""
