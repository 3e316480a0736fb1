"""twin turns one person's own words into a local model that answers as they would."""

__version__ = "0.1.0"
