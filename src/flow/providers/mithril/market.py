"""What Mithril has to offer: kinds of machines, where they are to be had, and at what price."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flow.durable import write_durably
from flow.errors import ResourceNotFoundError
from flow.gpus import Gpu
from flow.machines import Offer, Price
from flow.providers.mithril.api import Api

_TYPES_SECONDS = 86_400.0  # kinds of machines hardly ever change
_PRICES_SECONDS = 30.0
_SAMPLES = 96  # of each kind in each region
_AT_ONCE = 8


def dollars(text: object) -> float | None:
    """The number of `"$1,025.60"`; None where there is none."""
    try:
        return float(str(text).replace("$", "").replace(",", ""))
    except ValueError:
        return None


def moment(text: object) -> float | None:
    """Seconds since the epoch of the API's times, which are UTC where they do not say."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def cents(count: object, otherwise: float | None = None) -> float | None:
    """Dollars of so many cents."""
    return count / 100 if isinstance(count, int) else otherwise


def price_text(price: float) -> str:
    """As the API takes a price."""
    return f"${price:.2f}"


class Market:
    """`cache`: a folder for what need not be asked for again at once."""

    def __init__(self, api: Api, cache: Path) -> None:
        self._api, self._cache = api, cache

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """Each kind of machine in each region that has it: what can be had now first, cheapest first."""
        types = self.types()
        rows, seen = self._cached("availability", _PRICES_SECONDS, lambda: self._api.list("/v2/spot/availability"))
        if any(row["instance_type"] not in types for row in rows):  # newer than what is kept
            types = self.types(is_fresh=True)
        offers = [_offer(row, types[row["instance_type"]], seen) for row in rows if row["instance_type"] in types]
        if gpu:
            offers = [one for one in offers if one.gpu and gpu.kind in (one.gpu.kind, "gpu")]
            offers = [one for one in offers if one.gpu and gpu.count in (None, one.gpu.count)]
        return sorted(offers, key=lambda one: (not one.available, one.price_per_hour or 0.0, one.instance_type))

    def types(self, *, is_fresh: bool = False) -> dict[str, dict[str, Any]]:
        """Every kind of machine, by its id."""
        seconds = 0.0 if is_fresh else _TYPES_SECONDS
        found, _ = self._cached("types", seconds, lambda: self._api.list("/v2/instance-types"))
        return {str(one["fid"]): one for one in found}

    def prices(self, offers: Sequence[Offer]) -> list[Price]:
        """What each costs now, and has cost; all asked at once."""
        if not offers:
            return []
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            past = threads.submit(self._history, sorted({one.type_id for one in offers}))
            now = list(threads.map(self._now, offers))
            history = past.result()
        return [
            Price(
                offer,
                now=cents(told.get("spot_price_cents"), offer.price_per_hour),
                least=cents(told.get("minimum_price_cents")),
                available=offer.available if told.get("available_capacity") is None else told["available_capacity"],
                total=told.get("total_capacity"),
                history=tuple(history.get((offer.type_id, str(offer.region)), ())),
            )
            for offer, told in zip(offers, now, strict=True)
        ]

    def _now(self, offer: Offer) -> dict[str, Any]:
        """What the API tells of one; nothing where it does not know it, as what it offers now it may not soon."""
        with suppress(ResourceNotFoundError):
            told = self._api.get("/v2/pricing/current", instance_type=offer.type_id, region=offer.region)
            return told if isinstance(told, dict) else {}
        return {}

    def _history(self, type_ids: Collection[str]) -> dict[tuple[str, str], list[tuple[float, float]]]:
        """When each kind has cost what, by its id and region, oldest first."""
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        told = self._api.get("/v2/pricing/history", instance_types=list(type_ids), num_samples=_SAMPLES)
        for one in told.get("prices", []) if isinstance(told, dict) else told:
            at, price = moment(one.get("timestamp")), dollars(one.get("spot_instance_price"))
            if at is not None and price is not None:
                found.setdefault((str(one.get("instance_type")), str(one.get("region"))), []).append((at, price))
        return {place: sorted(points) for place, points in found.items()}

    def _cached(self, name: str, seconds: float, ask: Any) -> tuple[list[dict[str, Any]], float]:
        """An answer of at most that age, and when it was given, in seconds since the epoch."""
        file = self._cache / f"{name}.json"
        with suppress(OSError, ValueError, KeyError):
            kept = json.loads(file.read_text())
            if kept["url"] == self._api.url and 0 <= time.time() - kept["seen"] < seconds:
                return kept["rows"], kept["seen"]
        rows, seen = list(ask()), time.time()
        with suppress(OSError):  # a home that cannot be written to
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(file, json.dumps({"url": self._api.url, "seen": seen, "rows": rows}).encode())
        return rows, seen


def _offer(row: Mapping[str, Any], kind: Mapping[str, Any], seen: float) -> Offer:
    price = dollars(row.get("last_instance_price"))
    if price is None:
        price = dollars(row.get("lowest_allocated_price"))
    return Offer(
        provider="mithril",
        instance_type=str(kind["name"]),
        gpu=gpu_of(kind),
        cpus=float(kind.get("num_cpus") or 0),
        memory_gb=float(kind.get("ram_gb") or 0),
        price_per_hour=price,
        region=str(row["region"]),
        available=int(row.get("capacity") or 0),
        type_id=str(row["instance_type"]),
        seen=seen,
    )


def gpu_of(kind: Mapping[str, Any]) -> Gpu | None:
    """The GPUs of a kind of machine."""
    count = int(kind.get("num_gpus") or 0)
    named = str(kind.get("gpu_type") or "") or str(kind["name"]).partition("-")[0]
    return Gpu(re.sub(r"[^a-z0-9]", "", named.lower()), count) if count else None
