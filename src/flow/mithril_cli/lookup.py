"""Names -> ids, as an account's own lists have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from flow.errors import ResourceNotFoundError, ValidationError, did_you_mean
from flow.mithril_cli.resources import AVAILABILITY, INSTANCE_TYPES, Resource

if TYPE_CHECKING:
    from flow.providers.mithril.account import Account

Row = Mapping[str, Any]

_MOST_NAMED = 10


class Lookup:
    """What an account has. Each list is asked for once, and only when a name is to be found in it."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._lists: dict[str, list[Row]] = {}

    def rows(self, resource: Resource, **query: object) -> Iterator[Row]:
        """All of them, or those that the server chooses by `query`."""
        listed = self.account.api.pages if resource.is_paged else self.account.api.list
        project = {"project": self.account.project} if resource.of_project else {}
        return iter(listed(resource.path, **{**resource.query, **project, **query}))

    def ids(self, resource: Resource, word: str) -> list[str]:
        """Those of all that have this name, or one of this pattern; an id is itself. Raises where there is none."""
        if _is_id(resource, word):
            return [word]
        matching = [row for row in self._all(resource) if fnmatchcase(_name(row), word)] if is_pattern(word) else []
        return [_fid(row) for row in matching or self._named(resource, word)]

    def id(self, resource: Resource, word: str, *, region: str | None = None) -> str:
        """The one of this name. region: where an instance type is to be had, as one name stands for one in each."""
        if _is_id(resource, word):
            return word
        return _fid(self._only(resource, word, self._named(resource, word), region))

    def names(self, resource: Resource) -> dict[str, str]:
        """The name of each id."""
        return {str(row.get("fid")): _name(row) for row in self._all(resource)}

    def one(self, resource: Resource, word: str) -> Row:
        """Everything about the one of this name or id."""
        if not _is_id(resource, word):
            return self._only(resource, word, self._named(resource, word))
        if resource.has_get:
            try:
                return self.account.api.one(f"{resource.path}/{word}")
            except ResourceNotFoundError:
                pass  # an older API has only the list
        found = [row for row in self._all(resource) if row.get("fid") == word]
        if not found:
            raise self._nothing(resource, word)
        return found[0]

    def _named(self, resource: Resource, word: str) -> Sequence[Row]:
        if "name" in resource.filters:
            rows: Iterable[Row] = self.rows(resource, name=word)
        else:
            rows = self._all(resource)
        found = [row for row in rows if _name(row) == word]
        if not found:
            raise self._nothing(resource, word)
        return found

    def _only(self, resource: Resource, word: str, found: Sequence[Row], region: str | None = None) -> Row:
        if len(found) > 1:
            live = [row for row in found if not (row.get("deactivated_at") or row.get("deleted_at"))]
            found = live or found
        if len(found) > 1 and region and resource is INSTANCE_TYPES:
            sold = {
                row.get("instance_type")
                for row in self.rows(AVAILABILITY, region=region)
                if row.get("region") == region
            }
            found = [row for row in found if _fid(row) in sold] or found
        if len(found) > 1:
            ids = ", ".join(map(_fid, found[:_MOST_NAMED]))
            raise ValidationError(
                f"`{word}` is the name of {len(found)} {resource.many}", suggestions=[f"give an id: {ids}"]
            )
        return found[0]

    def _all(self, resource: Resource) -> list[Row]:
        if resource.name not in self._lists:
            self._lists[resource.name] = list(self.rows(resource))
        return self._lists[resource.name]

    def _nothing(self, resource: Resource, word: str) -> ResourceNotFoundError:
        names = dict.fromkeys(name for row in self._all(resource) if (name := _name(row)))
        few = [f"the {resource.many} are {', '.join(names)}"] if 0 < len(names) <= _MOST_NAMED else []
        return ResourceNotFoundError(
            f"no {resource.one} `{word}`",
            suggestions=[*did_you_mean(word, names), *few, f"list them with `mithril {resource.name} list`"],
        )


def is_pattern(word: str) -> bool:
    """Whether it stands for many."""
    return any(sign in word for sign in "*?[")


def _is_id(resource: Resource, word: str) -> bool:
    return bool(resource.prefix) and re.fullmatch(rf"{resource.prefix}\w+", word) is not None


def _fid(row: Row) -> str:
    from flow.providers.mithril.api import id_of  # no help needs it

    return id_of(row)


def _name(row: Row) -> str:
    return str(row.get("name") or "")
