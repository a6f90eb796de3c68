"""Owns which prompts a split keeps on one side. Pure; knows no model and no file format.

Data name what belongs together, a prompt or a conversation of many, and may call one prompt by two names: all that
hangs together by names and by equal prompts is one group.
"""

from __future__ import annotations

Messages = tuple[tuple[str, str], ...]


def names_of(named: str, tree: str) -> tuple[str, ...]:
    """What a prompt is called by its own name and by its conversation's, where it has them.

    Numbers are names in either column: what distinguishes a conversation keeps the two apart.
    """
    return (*((named,) if named else ()), *((f"~tree {tree}",) if tree else ()))


class Groups:
    """Prompts and the names that data give them. A group is called by the least of its names."""

    def __init__(self) -> None:
        self._named: dict[Messages, str] = {}
        self._same: dict[str, str] = {}

    def add(self, prompt: Messages, name: str) -> None:
        """A prompt is called so, perhaps among other names."""
        known = self._named.setdefault(prompt, name)
        least, other = sorted((self._root(known), self._root(name)))
        self._same[other] = least

    def of(self, prompt: Messages) -> str:
        """The group of a prompt that was added, as it is by now."""
        return self._root(self._named[prompt])

    def _root(self, name: str) -> str:
        while (above := self._same.get(name, name)) != name:
            self._same[name] = self._same.get(above, above)  # the next way is half as long
            name = above
        return name
