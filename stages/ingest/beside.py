"""What lies beside films in the files of a root: counted, and named where it could be films that nobody reads."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stages.sources import archives, raw


@dataclass
class Met:
    """What lay in some files beside films in the owner's format.

    Attributes:
        others: names of members that are no film.
        of_system: how many more an operating system made.
        saved_again: format -> how many films are in it that the owner ships in another.
    """

    others: list[str] = field(default_factory=list)
    of_system: int = 0
    saved_again: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_all(cls, parts: Iterable[Any]) -> "Met":
        """What lay in several groups of files, each as a dict of the attributes."""
        listed = list(parts)
        saved_again: Counter[str] = Counter()
        for part in listed:
            saved_again.update(part["saved_again"])
        others = [name for part in listed for name in sorted(part["others"])]
        return cls(others, sum(part["of_system"] for part in listed), saved_again)

    def note(self, name: str, image: str | None) -> None:
        """Count a file or member by its name and the key of its film."""
        if image is not None:
            if form := raw.saved_again_as(name, image):
                self.saved_again[form] = self.saved_again.get(form, 0) + 1
        elif archives.is_of_system(name):
            self.of_system += 1
        else:
            self.others.append(name)

    def require_no_archives(self, file: str) -> None:
        """Check that a file without a film holds no archives in its place.

        Raises:
            ArchiveError: naming the first of them.
        """
        if nested := sorted(filter(archives.has_suffix, self.others)):
            raise archives.ArchiveError(
                f"{file} holds no film but archives ({raw.few(nested)}), which are not looked into: unpack it, so that "
                "they lie in the root"
            )

    def told(self, loose: Any) -> dict[str, Any]:
        """What of it is worth saying.

        Args:
            loose: the count of images in folders whose names are no film's, and the first of them (see `download`).
        """
        unread = [name for name in self.others if raw.may_hold_films(name)]
        count = len(unread) + loose.get("count", 0)
        first = [*loose.get("first", []), *unread][: raw.NAMED]
        return {
            **({"saved_again_as": dict(sorted(self.saved_again.items()))} if self.saved_again else {}),
            **({"left_unread": {"count": count, "first": first}} if count else {}),
            **({"members_of_operating_systems": self.of_system} if self.of_system else {}),
        }
