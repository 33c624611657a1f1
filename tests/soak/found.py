"""What a trial found."""

from dataclasses import dataclass, field


@dataclass
class Found:
    """What a trial found: how often it was tried, what came of it, and what must not have."""

    tried: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        """One more of an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
