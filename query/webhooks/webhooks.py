"""The table `webhooks` in ClickHouse, and the entries of `audit` about it."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
import pyarrow as pa

from infra.clickhouse.alerts import Alert
from infra.clickhouse.client import ClickHouse
from infra.structs import decodable

MOST_OF_AN_ADVERTISER = 20


@decodable
class Webhook(msgspec.Struct, frozen=True):
    """An address that alerts are delivered to. `advertiser_id` 0: those of the operator. `kinds`: of alerts; empty: all. `since_ms`:
    alerts that were written before are not delivered: when it was made, or enabled again. Moments are epoch ms, 0 for none."""

    id: str
    advertiser_id: int
    url: str
    description: str
    kinds: list[str]
    format: str
    secret: str
    former_secret: str
    former_until_ms: int
    enabled: bool
    disabled_why: str
    created_ms: int
    since_ms: int
    deleted: bool
    version: int

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Webhook({self.id}, {self.version})"

    def secrets_in_use(self, now_ms: int) -> list[str]:
        """The secrets that messages are signed with, the present one first."""
        former = [self.former_secret] if self.former_secret and now_ms < self.former_until_ms else []
        return [self.secret, *former]

    def wants(self, alert: Alert) -> bool:
        """Whether an alert is of its advertiser and of one of its kinds."""
        return alert.advertiser_id == self.advertiser_id and (not self.kinds or alert.kind in self.kinds)


_COLUMNS = Webhook.__struct_fields__
_TYPES: dict[str, Any] = {
    "advertiser_id": pa.uint64(), "kinds": pa.list_(pa.string()), "former_until_ms": pa.uint64(), "enabled": pa.uint8(),
    "created_ms": pa.uint64(), "since_ms": pa.uint64(), "deleted": pa.uint8(), "version": pa.uint64(),
}  # fmt: skip
_AUDITED = ("advertiser_id", "url", "description", "kinds", "format", "enabled", "disabled_why")


class WebhookStore:
    """Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def all(self) -> list[Webhook]:
        """All that are not deleted, the oldest first."""
        rows = self._client.rows(
            f"SELECT {', '.join(_COLUMNS)} FROM {self._client.database}.webhooks FINAL WHERE deleted = 0"
            " ORDER BY created_ms, id"
        )
        return [msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), Webhook, strict=False) for row in rows]

    def find(self, id_: str) -> Webhook | None:
        """One of them."""
        return next((webhook for webhook in self.all() if webhook.id == id_), None)

    def write(self, webhook: Webhook, action: str, actor: str, now_ms: int, former: Webhook | None = None) -> None:
        """Write a version. The audit log first: no change without an entry. It has neither secrets nor the path of a URL, which may
        be one."""
        at = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        entry = {
            "actor": [actor],
            "action": [action],
            "subject": [f"webhook/{webhook.id}"],
            "detail": [_detail(webhook, former)],
        }
        self._client.insert("audit", pa.table({"at": pa.array([at], pa.timestamp("ms", "UTC")), **entry}))
        values = msgspec.structs.asdict(webhook)
        self._client.insert(
            "webhooks",
            pa.table({name: pa.array([_plain(values[name])], _TYPES.get(name, pa.string())) for name in _COLUMNS}),
        )


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _detail(webhook: Webhook, former: Webhook | None) -> str:
    after = {name: getattr(webhook, name) for name in _AUDITED}
    if former is not None:
        after = {name: value for name, value in after.items() if value != getattr(former, name)}
    if "url" in after:
        after["url"] = "/".join(webhook.url.split("/", 3)[:3])
    return json.dumps(after, ensure_ascii=False, separators=(",", ":"))
