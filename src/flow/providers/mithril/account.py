"""One account at Mithril: its API, and the project that its bids and volumes are of."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from flow.errors import AuthenticationError, ResourceNotFoundError, ValidationError, did_you_mean
from flow.providers.mithril.api import KEYS_PAGE, Api

if TYPE_CHECKING:
    from flow.settings import Settings

_ID = "proj_"


class Account:
    """`name` is the project's name or id, None for the only one there is; `origin` tells who gave it."""

    def __init__(self, api: Api, name: str | None = None, *, origin: str = "") -> None:
        self.api = api
        self._name, self._origin = name, origin

    @classmethod
    def of(cls, settings: Settings) -> Account:
        """The account that the settings name. Raises AuthenticationError where there is no key."""
        key = settings.get("mithril.api_key")
        if not key:
            raise AuthenticationError(
                "no API key for Mithril",
                suggestions=["`flow init` sets it, or MITHRIL_API_KEY", f"it is at {KEYS_PAGE}"],
            )
        api = Api(key, settings.get("mithril.api_url"))
        return cls(api, settings.get("mithril.project"), origin=settings.origin("mithril.project"))

    @cached_property
    def project(self) -> str:
        """Its id, asked for once; one that was given as an id is taken as it is.

        Raises ResourceNotFoundError where there is no such project, ValidationError where it is not clear which.
        """
        if self._name and self._name.startswith(_ID):
            return self._name
        found = list(self.api.list("/v2/projects"))
        told = [f"the projects are {', '.join(_names(found))}"] if found else ["make one in the web console"]
        if not self._name:
            if len(found) == 1:
                return str(found[0]["fid"])
            what = f"no project is chosen, and there are {len(found)}" if found else "this account has no project"
            raise ValidationError(
                what, suggestions=[*told, *(["choose one: `flow init`, or MITHRIL_PROJECT"] if found else [])]
            )
        same = [one for one in found if one.get("name") == self._name]
        same = same or [one for one in found if str(one.get("name")).lower() == self._name.lower()]
        if len(same) == 1:
            return str(same[0]["fid"])
        origin = f" ({self._origin})" if self._origin else ""
        if same:
            ids = ", ".join(str(one["fid"]) for one in same)
            raise ValidationError(
                f"`{self._name}`{origin} is the name of {len(same)} projects", suggestions=[f"give an id: {ids}"]
            )
        raise ResourceNotFoundError(
            f"no project `{self._name}`{origin}", suggestions=[*did_you_mean(self._name, _names(found)), *told]
        )


def _names(projects: list[dict[str, Any]]) -> list[str]:
    return [str(one.get("name")) for one in projects]
