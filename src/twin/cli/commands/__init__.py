"""One file a command, found by ``app``."""
