"""The tables of alerts in ClickHouse: versions, acknowledgements, mutes, and their entries in `audit`. Every method may raise Unavailable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from infra.clickhouse.alerts import TABLE, written_now_ms
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS
from query.alerts.mutes import Mute, MuteSubject
from query.alerts.questions import AlertFilter, AlertsQuestion
from query.alerts.records import Acknowledgement, AlertVersion
from query.alerts.scope import AlertScope
from query.alerts.summary import AlertSummary, read_summary

_COLUMNS = (
    "id, version, kind, severity, state, advertiser_id, campaign_id, opened_ms, ended_ms, summary, detail,"
    " toUnixTimestamp64Milli(at) AS at_ms"
)
# How far an alert may have opened, by event time, behind the moment at which its versions were written.
_AHEAD_MS = DAY_MS
_LATELY_MS = 30 * DAY_MS
_CAMPAIGNS_OF = "if(every_campaign, 'all', toString(campaign_id))"
_IS_MUTED = (
    "((advertiser_id, toString(kind), toString(campaign_id)) IN mutes OR (advertiser_id, '', toString(campaign_id)) IN mutes"
    " OR (advertiser_id, toString(kind), 'all') IN mutes OR (advertiser_id, '', 'all') IN mutes)"
)


class AlertStore:
    """Reads versions of alerts; reads and writes acknowledgements and mutes."""

    def __init__(self, client: ClickHouse) -> None:
        self._client, self._db = client, client.database

    def now_ms(self) -> int:
        """The clock by which versions are written."""
        return written_now_ms(self._client)

    def summary(self, scope: AlertScope, advertiser: int | None, now_ms: int) -> AlertSummary:
        """How many of the last alerts of campaigns were false."""
        return read_summary(self._client, scope, advertiser, now_ms)

    # -- versions -------------------------------------------------------------------------------------------------

    def page(self, question: AlertsQuestion, as_of_ms: int, now_ms: int) -> list[AlertVersion]:
        """The current versions of a page of alerts, one more than its limit where there are more. `now_ms`: of mutes."""
        newest_ms = as_of_ms if question.after is None else min(as_of_ms, question.after[0])
        # Most pages are full of what has opened lately, and the rest of the table need not be read.
        since_ms = max(newest_ms - _LATELY_MS, question.since_ms or 0)
        keys = self._page_keys(question, since_ms, as_of_ms, now_ms)
        if len(keys) <= question.limit and since_ms > (question.since_ms or 0):
            keys = self._page_keys(question, question.since_ms, as_of_ms, now_ms)
        if not keys:
            return []
        written = [at_ms for _, _, at_ms in keys]
        versions = self._read(
            "WHERE id IN {ids:Array(String)} AND at BETWEEN fromUnixTimestamp64Milli({from:Int64}) AND fromUnixTimestamp64Milli({to:Int64})"
            " LIMIT 1 BY id, version",
            {"ids": [id_ for id_, _, _ in keys], "from": min(written), "to": max(written)},
        )
        stored = {(v.id, v.version): v for v in versions}
        return [stored[id_, version] for id_, version, _ in keys if (id_, version) in stored]

    def _page_keys(
        self, question: AlertsQuestion, since_ms: int | None, as_of_ms: int, now_ms: int
    ) -> list[tuple[str, int, int]]:
        """Id and version of the alerts of a page, and when that was written, as far as they have opened since a moment."""
        within, parameters = question.filter.fixed_conditions()
        within.append("at <= fromUnixTimestamp64Milli({as_of:Int64})")
        outside = ["last_severity IN {severities:Array(String)}"]
        parameters |= {"as_of": as_of_ms, "severities": list(question.filter.severities), "limit": question.limit + 1}
        if question.filter.state:
            outside.append("last_state = {state:String}")
            parameters["state"] = question.filter.state
        if since_ms is not None:
            # The second one skips months of the table.
            outside.append("opened >= {since:UInt64}")
            within.append("at >= fromUnixTimestamp64Milli({written_since:Int64})")
            parameters |= {"since": since_ms, "written_since": max(0, since_ms - _AHEAD_MS)}
        if question.after is not None:
            outside.append("(opened < {after:UInt64} OR (opened = {after:UInt64} AND id > {after_id:String}))")
            parameters |= {"after": question.after[0], "after_id": question.after[1]}
        mutes = ""
        if not question.filter.muted:
            mutes = (
                f"WITH mutes AS (SELECT advertiser_id, toString(kind), {_CAMPAIGNS_OF} FROM {self._db}.alert_mutes FINAL"
                " WHERE deleted = 0 AND until_ms > {now:UInt64}) "
            )
            within.append(f"NOT {_IS_MUTED}")
            parameters["now"] = now_ms
        rows = self._client.rows(
            f"{mutes}SELECT id, newest, toUnixTimestamp64Milli(written) FROM (SELECT id, max(version) AS newest, argMax(at, version) AS written, argMax(severity, version) AS last_severity,"
            f" argMax(state, version) AS last_state, argMax(opened_ms, version) AS opened FROM {self._db}.{TABLE}"
            f" WHERE {' AND '.join(within)} GROUP BY id) WHERE {' AND '.join(outside)}"
            " ORDER BY opened DESC, id LIMIT {limit:UInt32}",
            parameters,
        )
        return [(id_, int(version), int(at_ms)) for id_, version, at_ms in rows]

    def versions(self, ids: Sequence[str]) -> list[AlertVersion]:
        """All versions of some alerts, each once, the oldest first."""
        if not ids:
            return []
        return self._read(
            "WHERE id IN {ids:Array(String)} ORDER BY id, version, at LIMIT 1 BY id, version", {"ids": list(ids)}
        )

    def newest(self, since_ms: int, most: int) -> list[AlertVersion]:
        """Versions that were written since a moment, the newest first; of a millisecond all, and `most` or a few more."""
        return self._read(
            "WHERE at >= fromUnixTimestamp64Milli({since:Int64}) ORDER BY at DESC LIMIT {most:UInt32} WITH TIES",
            {"since": since_ms, "most": most},
        )

    def written_since(self, filter_: AlertFilter, since_ms: int, most: int) -> list[AlertVersion]:
        """Versions of the alerts of a filter that were written since a moment, the oldest first; of a millisecond all, and `most` or a
        few more. Severity and state are not looked at: a version that does not match any more is one, too."""
        conditions, parameters = filter_.fixed_conditions()
        conditions.append("at >= fromUnixTimestamp64Milli({since:Int64})")
        return self._read(
            f"WHERE {' AND '.join(conditions)} ORDER BY at LIMIT {{most:UInt32}} WITH TIES",
            parameters | {"since": since_ms, "most": most},
        )

    def _read(self, rest: str, parameters: dict[str, Any]) -> list[AlertVersion]:
        rows = self._client.rows(f"SELECT {_COLUMNS} FROM {self._db}.{TABLE} {rest}", parameters)
        return [AlertVersion(*row) for row in rows]

    # -- acknowledgements ------------------------------------------------------------------------------------------

    def acknowledgements(self, ids: Sequence[str]) -> dict[str, Acknowledgement]:
        """By alert: that of the newest version that was acknowledged, the first one of it."""
        if not ids:
            return {}
        rows = self._client.rows(
            f"SELECT id, version, actor, toUnixTimestamp64Milli(at) FROM {self._db}.alert_acknowledgements"
            " WHERE id IN {ids:Array(String)} ORDER BY id, version DESC, at LIMIT 1 BY id",
            {"ids": list(ids)},
        )
        return {id_: Acknowledgement(int(version), actor, int(at)) for id_, version, actor, at in rows}

    def acknowledge(self, alert: AlertVersion, acknowledgement: Acknowledgement) -> None:
        """Store an acknowledgement. Safe to repeat, but for the audit log."""
        a = acknowledgement
        self._audit(a.at_ms, a.actor, "acknowledge", f"alert/{alert.id}", f"version {a.version}: {alert.summary}")
        self._client.insert("alert_acknowledgements", pa.table({
            "id": [alert.id], "version": pa.array([a.version], pa.uint32()), "actor": [a.actor], "at": _moment(a.at_ms),
        }))  # fmt: skip

    # -- mutes ----------------------------------------------------------------------------------------------------------

    def mutes(self, now_ms: int, advertisers: Sequence[int] | None = None) -> list[Mute]:
        """The mutes that have not ended, of some advertisers or of all; those that end first come first."""
        which = "" if advertisers is None else " AND advertiser_id IN {advertisers:Array(UInt64)}"
        rows = self._client.rows(
            "SELECT toString(kind), advertiser_id, campaign_id, every_campaign, until_ms, actor, toUnixTimestamp64Milli(at), version"
            f" FROM {self._db}.alert_mutes FINAL WHERE deleted = 0 AND until_ms > {{now:UInt64}}{which} ORDER BY until_ms, id",
            {"now": now_ms} | ({} if advertisers is None else {"advertisers": sorted(advertisers)}),
        )
        return [
            Mute(MuteSubject(kind, advertiser, None if every else campaign), until, actor, at, version)
            for kind, advertiser, campaign, every, until, actor, at, version in rows
        ]

    def mute_version(self, subject: MuteSubject) -> int:
        """The newest version of the mutes of a subject, also of those that have ended; 0 for none."""
        rows = self._client.rows(
            f"SELECT max(version) FROM {self._db}.alert_mutes WHERE id = {{id:String}}", {"id": subject.id}
        )
        return int(rows[0][0])

    def write_mute(self, mute: Mute) -> None:
        """Store a mute in the place of the former one of its subject."""
        self._write_mute(mute, mute.actor, mute.at_ms, mute.version, deleted=False)

    def delete_mute(self, mute: Mute, actor: str, at_ms: int) -> None:
        """End a mute now."""
        self._write_mute(mute, actor, at_ms, mute.version + 1, deleted=True)

    def _write_mute(self, mute: Mute, actor: str, at_ms: int, version: int, *, deleted: bool) -> None:
        subject, document = mute.subject, mute.document()
        what = "all kinds" if not subject.kind else subject.kind
        where = "" if subject.campaign is None else f", campaign {subject.campaign}"
        until = "" if deleted else f", until {document['until']}"
        detail = f"{what} of advertiser {subject.advertiser}{where}{until}"
        self._audit(at_ms, actor, "unmute" if deleted else "mute", f"mute/{subject.id}", detail)
        self._client.insert("alert_mutes", pa.table({
            "id": [subject.id], "version": pa.array([version], pa.uint64()), "kind": [subject.kind],
            "advertiser_id": pa.array([subject.advertiser], pa.uint64()),
            "campaign_id": pa.array([subject.campaign or 0], pa.uint64()),
            "every_campaign": pa.array([subject.campaign is None], pa.bool_()).cast(pa.uint8()),
            "until_ms": pa.array([mute.until_ms], pa.uint64()), "actor": [actor], "at": _moment(at_ms),
            "deleted": pa.array([deleted], pa.bool_()).cast(pa.uint8()),
        }))  # fmt: skip

    def _audit(self, at_ms: int, actor: str, action: str, subject: str, detail: str) -> None:
        """An entry of the audit log, which comes first: no change without one."""
        self._client.insert("audit", pa.table({
            "at": _moment(at_ms), "actor": [actor], "action": [action], "subject": [subject], "detail": [detail],
        }))  # fmt: skip


def _moment(ms: int) -> pa.Array:
    return pa.array([ms], pa.timestamp("ms", "UTC"))
