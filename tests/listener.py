"""A reporter that keeps what it is told, for tests of what is said."""

from twin.progress import Silent


class Listener(Silent):
    """Keeps the lines in ``said``."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)
