"""A round of all rules: facts are read, judged, and what has changed is written. A rule whose facts cannot be read is left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS
from infra.errors import AdclickError
from infra.redis.client import Redis
from infra.settings import Settings
from query.directory.editor import DirectoryEditor
from query.directory.store import DirectoryStore
from query.notify import bill_rules, budget_rule, facts, pipeline_rules
from query.notify.announcements import announce_pauses
from query.notify.changes import Condition, RuleFindings, find_changes
from query.notify.outbox import Outbox
from query.notify.pipeline_rules import PipelineFacts, PipelineWatch
from query.router import Router
from query.statements.reader import StatementReader
from query.statements.sources import RouterSources
from query.status import read_status
from query.webhooks.webhooks import WebhookStore

KINDS = (
    budget_rule.KIND, pipeline_rules.OVERLOAD, pipeline_rules.DEAD_LETTERS, pipeline_rules.SILENCE,
    pipeline_rules.WORKER_STOPPED, pipeline_rules.DETECTOR_STOPPED, bill_rules.RUN_ALERT, bill_rules.UNBILLED, bill_rules.STATEMENT_READY,
    bill_rules.STATEMENT_RESTATED, bill_rules.WEBHOOK_DISABLED,
)  # fmt: skip
"""Of the alerts that are written here."""
# Statements are looked at more seldom: nothing about them is urgent.
_STATEMENTS_EVERY_MS = MINUTE_MS


class Rounds:
    """The rules of an installation. Used by one thread. `run` raises Unavailable where changes cannot be written; what was read before
    is read again then."""

    def __init__(self, settings: Settings, actor: str, now: Callable[[], int], log: Any) -> None:
        self._settings, self._actor, self._now, self._log = settings, actor, now, log
        self._client = ClickHouse.of(settings, timeout_s=max(30, settings.query_timeout_s))
        self._outbox, self._watch = Outbox(self._client, KINDS), PipelineWatch()
        self._webhooks = WebhookStore(self._client)
        self._failing: dict[str, str] = {}
        self._statements_at_ms = 0

    @cached_property
    def _router(self) -> Router:
        return Router(self._settings)

    @cached_property
    def _editor(self) -> DirectoryEditor:
        redis = Redis(self._settings.redis_access)
        return DirectoryEditor(
            DirectoryStore(self._client), self._router.directory, redis, self._settings.key_prefix
        )  # fmt: skip

    @cached_property
    def _issuer(self) -> facts.StatementIssuer:
        sources = RouterSources(self._router, self._settings, self._now)
        reader = StatementReader(self._client, sources, self._settings.currency, self._settings.block_partitions)
        return facts.StatementIssuer(self._client, reader)

    def run(self, check_lease: Callable[[], None]) -> int:
        """Evaluate all rules once; returns how many versions were written. `check_lease` raises LeaseLost where another worker is the
        active one: then nothing is written."""
        rules: dict[str, Callable[[], list[RuleFindings]]] = {
            "pipeline": self._judge_pipeline,
            "runs": lambda: [bill_rules.judge_runs(facts.read_run_facts(self._client))],
            "statements": self._judge_statements,
            "webhooks": lambda: [bill_rules.judge_webhooks(self._webhooks.all(), self._now())],
            "budgets": self._judge_budgets,
        }
        all_findings = [findings for name, rule in rules.items() for findings in self._judge(name, rule)]
        conditions = [condition.id for findings in all_findings for condition in findings.conditions]
        changes = find_changes(self._outbox.current(conditions), all_findings, self._now())
        check_lease()
        self._outbox.write(changes)
        for change in changes:
            self._log.info("alert", id=change.id, version=change.version, kind=change.kind, state=change.state)
        return len(changes)

    def _judge(self, name: str, rule: Callable[[], list[RuleFindings]]) -> list[RuleFindings]:
        """What a rule finds; nothing where its facts cannot be read, which is logged when it begins and when it ends."""
        try:
            all_findings = rule()
        except AdclickError as error:
            if self._failing.get(name) != type(error).__name__:
                self._log.warning("rule not evaluated", rule=name, why=str(error))
            self._failing[name] = type(error).__name__
            return []
        if self._failing.pop(name, None):
            self._log.info("rule evaluated again", rule=name)
        return all_findings

    def _judge_pipeline(self) -> list[RuleFindings]:
        status, now_ms, open_ = read_status(self._settings), self._now(), self._outbox.open
        seen, share = self._watch.observe(status, now_ms), self._settings.dead_letter_share
        return [
            pipeline_rules.judge_overload(seen, open_(pipeline_rules.OVERLOAD), now_ms),
            pipeline_rules.judge_dead_letters(seen, open_(pipeline_rules.DEAD_LETTERS), share, now_ms),
            pipeline_rules.judge_workers(seen, open_(pipeline_rules.WORKER_STOPPED), now_ms),
            pipeline_rules.judge_detector(seen, open_(pipeline_rules.DETECTOR_STOPPED), now_ms),
            self._judge_silence(seen, now_ms),
        ]

    def _judge_silence(self, seen: PipelineFacts, now_ms: int) -> RuleFindings:
        open_, for_ms = self._outbox.open(pipeline_rules.SILENCE), self._settings.silence_alert_s * 1000
        if not for_ms:
            return RuleFindings((pipeline_rules.SILENCE,))
        usual = 0.0
        # What is usual is looked up only where it matters.
        if pipeline_rules.is_silent(seen, for_ms, now_ms) and not open_:
            usual = facts.read_usual_events(self._client, now_ms)
        return pipeline_rules.judge_silence(seen, open_, for_ms, usual, now_ms)

    def _judge_budgets(self) -> list[RuleFindings]:
        now_ms = self._now()
        budgets = facts.read_budget_facts(self._router, now_ms)
        findings = budget_rule.judge_budgets(budgets, now_ms)
        if self._settings.budget_pause == "on" and findings.conditions:
            current = self._outbox.current([condition.id for condition in findings.conditions])
            # Once, when the alert becomes critical: whoever activates the campaign again is right.
            spent = [
                c
                for c in findings.conditions
                if c.severity == "critical"
                and not ((known := current.get(c.id)) and known.state == "open" and known.severity == c.severity)
            ]
            if spent:
                self._pause(spent, now_ms)
        return [findings]

    def _pause(self, spent: list[Condition], now_ms: int) -> None:
        """Pause the campaigns of these conditions, and announce that: also of those that a worker has paused which ended before it did."""
        snapshot, campaigns = self._router.directory.newest(), [condition.campaign_id for condition in spent]
        paused = facts.pause_campaigns(self._editor, snapshot, campaigns, self._actor)
        if paused:
            self._log.info("campaigns paused: their budgets are spent", campaigns=paused)
        announce_pauses(self._settings, spent, now_ms)

    def _judge_statements(self) -> list[RuleFindings]:
        now_ms = self._now()
        if now_ms - self._statements_at_ms >= _STATEMENTS_EVERY_MS:
            self._issuer.issue(now_ms)
            self._statements_at_ms = now_ms
        return [bill_rules.judge_statements(facts.read_issue_facts(self._client, now_ms), now_ms)]
