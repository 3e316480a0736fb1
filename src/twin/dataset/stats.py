"""What a brain holds, counted: messages by month and hour, lengths, people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twin.records import Conversation

LENGTHS = (1, 5, 10, 20, 40, 80, 160, 320, 640, 1280)  # characters: the lower bounds of the classes


class Counts:
    """Counts over conversations.

    Args:
        person: whose own messages are counted apart.
    """

    def __init__(self, person: str) -> None:
        self.person = person
        self.people: Counter[str] = Counter()
        self.months: Counter[str] = Counter()
        self.own_months: Counter[str] = Counter()
        self.hours: Counter[int] = Counter()
        self.lengths: Counter[int] = Counter()
        self.conversations: set[str] = set()

    def hear(self, conversation: Conversation) -> None:
        """Count the messages of a conversation, or of a piece of one."""
        self.conversations.add(conversation.id)
        for speaker, text, at in conversation.messages:
            own = speaker == self.person
            self.people[speaker] += 1
            if at:
                month = f"{at.year:04d}-{at.month:02d}"
                self.months[month] += 1
                self.own_months[month] += own
                self.hours[at.hour] += own
            if own:
                self.lengths[max((bound for bound in LENGTHS if bound <= len(text)), default=0)] += 1

    def as_json(self) -> dict[str, Any]:
        """Return the counts; hours and lengths are those of the person's own messages."""
        return {
            "conversations": len(self.conversations),
            "messages": self.people.total(),
            "own_messages": self.people[self.person],
            "people": dict(self.people.most_common()),
            "messages_by_month": dict(sorted(self.months.items())),
            "own_messages_by_month": dict(sorted(self.own_months.items())),
            "own_messages_by_hour": {str(hour): self.hours[hour] for hour in range(24)},
            "own_lengths_in_characters": {str(bound): self.lengths[bound] for bound in LENGTHS},
        }
