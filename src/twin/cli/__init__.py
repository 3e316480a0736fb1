"""The command line: thin files, one a command. Nothing imports this package."""
