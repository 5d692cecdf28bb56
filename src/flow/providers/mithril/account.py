"""One account at Mithril: its API, and the project that its bids and volumes are of."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from flow.errors import AuthenticationError, ValidationError, did_you_mean
from flow.providers.mithril.api import KEYS_PAGE, URL, Api, id_of

if TYPE_CHECKING:
    from flow.settings import Settings

BIDS = "/v2/spot/bids"
_LIVE = ("Open", "Allocated", "Preempting", "Paused")
_ID = "proj_"


def open_api(key: object, url: object, *, origin: str = "") -> Api:
    """The API by a key, of which `origin` tells who gave it. Raises AuthenticationError where there is none."""
    if not key:
        raise AuthenticationError(
            "no API key for Mithril",
            suggestions=["`flow init` sets it, or MITHRIL_API_KEY", f"it is at {KEYS_PAGE}"],
        )
    return Api(str(key), str(url or URL), origin=origin)


class Account:
    """`name` is the project's name or id, None for the only one there is; `origin` tells who gave it."""

    def __init__(self, api: Api, name: str | None = None, *, origin: str = "") -> None:
        self.api = api
        self._name, self._origin = name, origin

    @classmethod
    def of(cls, settings: Settings, *, project: str | None = None) -> Account:
        """The account of the settings; `project` goes before theirs. Raises AuthenticationError without a key."""
        origin = settings.origin("mithril.api_key")
        api = open_api(settings.get("mithril.api_key"), settings.get("mithril.api_url"), origin=origin)
        if project:
            return cls(api, project, origin="--project")
        return cls(api, settings.get("mithril.project"), origin=settings.origin("mithril.project"))

    def live_bids(self) -> list[dict[str, Any]]:
        """The project's, newest first within each state, all of which are asked for at once."""
        from concurrent.futures import ThreadPoolExecutor

        query = {"project": self.project, "sort_by": "created_at", "sort_dir": "desc"}
        with ThreadPoolExecutor(len(_LIVE)) as threads:
            told = threads.map(lambda status: list(self.api.pages(BIDS, status=status, **query)), _LIVE)
            return list({str(one["fid"]): one for some in told for one in some}.values())  # its state may have changed

    @cached_property
    def project(self) -> str:
        """Its id, asked for once; one that was given as an id is taken as it is.

        Raises ValidationError where there is no such project, or it is not clear which: a task is not to wait for it.
        """
        if self._name and self._name.startswith(_ID):
            return self._name
        found = self._projects()
        told = _told(found)
        if not self._name:
            if len(found) == 1:
                return id_of(found[0])
            what = f"no project is chosen, and there are {len(found)}" if found else "this account has no project"
            raise ValidationError(
                what, suggestions=[*told, *(["choose one: `flow init`, or MITHRIL_PROJECT"] if found else [])]
            )
        same = [one for one in found if one.get("name") == self._name]
        same = same or [one for one in found if str(one.get("name")).lower() == self._name.lower()]
        if len(same) == 1:
            return id_of(same[0])
        if same:
            ids = ", ".join(map(id_of, same))
            raise ValidationError(
                f"{self._given} is the name of {len(same)} projects", suggestions=[f"give an id: {ids}"]
            )
        raise ValidationError(
            f"no project {self._given}", suggestions=[*did_you_mean(self._name, _names(found)), *told]
        )

    def check_project(self) -> None:
        """Raises ValidationError where the project is none of those that this key may use."""
        found = self._projects()
        if self.project not in map(id_of, found):
            raise ValidationError(f"no project {self._given} is yours", suggestions=_told(found))

    @property
    def _given(self) -> str:
        return f"`{self._name}`" + (f" ({self._origin})" if self._origin else "")

    def _projects(self) -> list[dict[str, Any]]:
        return list(self.api.list("/v2/projects"))


def _told(projects: list[dict[str, Any]]) -> list[str]:
    return [f"the projects are {', '.join(_names(projects))}"] if projects else ["make one in the web console"]


def _names(projects: list[dict[str, Any]]) -> list[str]:
    return [str(one.get("name")) for one in projects]
