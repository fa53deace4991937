"""Rules and boards name only metrics and labels that exist; every alert has a runbook and a test; boards are what their script draws."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from infra.embedded import prometheus_server
from infra.monitoring import draw_boards
from query.api.metric_table import METRICS
from tests.unit.test_documents import anchors_of

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "infra" / "monitoring" / "rules").glob("*.yml"))
CASES = sorted((ROOT / "tests" / "monitoring").glob("*_rules.yml"))
BOARDS = sorted(draw_boards.FOLDER.glob("*.json"))
_NEVER_ZERO = {"adclick_archive_disk_size_bytes"}
# What Prometheus itself adds.
_SCRAPE_LABELS = {"job", "instance"}


def rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def expressions() -> list[tuple[str, str]]:
    """(where, expression) of all rules and boards."""
    named = [(str(rule.get("alert") or rule["record"]), str(rule["expr"])) for rule in rules()]
    for file in BOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            named += [
                (f"{file.stem}: {panel['title']}", target["expr"]) for target in panel.get("targets", ()) if target
            ]
    return named


@dataclass
class Names:
    """What an expression names: its metrics, each with the labels that it is selected by, and the labels by which all is grouped."""

    selected: list[tuple[str, set[str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def names_in(expression: str) -> Names:
    names = Names()
    for node in _nodes(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.VectorSelector):
            names.selected.append((str(node.name), {matcher.name for matcher in node.matchers.matchers}))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            names.grouped |= set(node.modifier.labels)
    return names


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for attribute in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        below = getattr(node, attribute, None)
        for each in below if isinstance(below, list) else [below]:
            if each is not None and type(each).__module__ == type(node).__module__:
                yield from _nodes(each)


def labels_of() -> dict[str, set[str]]:
    """Every name that an expression may have → the labels of its series."""
    labels = {"up": set[str]()}
    for row in METRICS.values():
        labels[row.name] = set(row.labels)
        if row.kind == "histogram":
            labels |= {f"{row.name}_{part}": {*row.labels, "le"} for part in ("bucket", "sum", "count")}
            del labels[row.name]
    labels = {name: own | _SCRAPE_LABELS for name, own in labels.items()}
    # Of recording rules the name begins with the labels that are left.
    labels |= {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in rules() if "record" in rule}
    return labels


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_an_expression_names_only_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    names, known = names_in(expression), labels_of()
    assert [name for name, _ in names.selected if name not in known] == []
    assert [(name, labels - known[name]) for name, labels in names.selected if labels - known[name]] == []
    every = set[str]().union(*(known[name] for name, _ in names.selected))
    assert names.grouped - every == set()


def test_a_metric_or_a_label_that_does_not_exist_is_found_anywhere_in_an_expression() -> None:
    names = names_in(
        'sum by (a) (rate(b{c="d"}[5m])) / on (a) e > 1 unless histogram_quantile(0.9, -f offset 1d) or topk(2, g)'
    )
    assert names == Names([("b", {"c"}), ("e", set()), ("f", set()), ("g", set())], {"a"})


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_nothing_is_divided_by_what_may_be_zero(where: str, expression: str) -> None:
    # 0 / 0 is NaN: a hole in a curve, and a figure that says NaN, on a quiet installation.
    for node in _nodes(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.BinaryExpr) and "/" in str(node.op):
            divisor = node.rhs
            is_guarded = any(isinstance(n, promql_parser.BinaryExpr) and ">" in str(n.op) for n in _nodes(divisor))
            names = {name for name, _ in names_in(str(divisor)).selected}
            assert isinstance(divisor, promql_parser.NumberLiteral) or is_guarded or names <= _NEVER_ZERO, str(divisor)


def test_every_metric_of_the_table_is_in_a_rule_or_on_a_board() -> None:
    text = " ".join(expression for _, expression in expressions())
    assert [name for name in METRICS if name not in text] == []


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_what_to_do_has_a_runbook_and_a_test(rule: dict[str, Any]) -> None:
    severity, notes = rule["labels"]["severity"], rule["annotations"]
    assert severity in ("critical", "warning", "info")
    assert notes.keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = notes["runbook_url"].partition("#")
    assert page == "docs/runbooks.md" and anchor in anchors_of(ROOT / page)
    assert anchor == rule["alert"].lower()
    # Labels that the expression does not leave would be empty in the text.
    labels = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
    grouped = names_in(rule["expr"]).grouped | set().union(
        *(labels_of()[name] for name, _ in names_in(rule["expr"]).selected)
    )
    assert labels <= grouped
    fires = f'{{alertname="{rule["alert"]}", severity="{severity}"}}'
    assert any(fires in file.read_text() for file in CASES), f"no case in tests/monitoring expects {fires}"


def test_every_runbook_is_of_an_alert() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.M)
    assert sorted(headings) == sorted({rule["alert"] for rule in alerts()})


def test_a_recorded_name_begins_with_the_labels_that_are_left() -> None:
    for rule in rules():
        if "record" in rule:
            grouped = names_in(rule["expr"]).grouped
            assert set(rule["record"].split(":")[0].split("_")) <= grouped, rule["record"]


def test_the_boards_are_what_their_script_draws() -> None:
    assert {file.stem: file.read_text() for file in BOARDS} == {
        name: draw_boards.draw(name) for name in draw_boards.BOARDS
    }


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
def test_panels_have_ids_of_their_own_and_do_not_overlap(file: Path) -> None:
    panels = json.loads(file.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_the_key_is_in_a_file_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    folder = tmp_path / "a folder"
    command = prometheus_server.prometheus(folder, 9123, "https://[::1]:8443", "s3cret")
    text = (folder / "prometheus.yml").read_text()
    config = yaml.safe_load(text)
    (scrape,) = config["scrape_configs"]
    assert (scrape["job_name"], scrape["scheme"], scrape["static_configs"]) == (
        "adclick",
        "https",
        [{"targets": ["[::1]:8443"]}],
    )
    key = Path(scrape["authorization"]["credentials_file"])
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("s3cret", 0o600)
    assert "s3cret" not in text + "".join(command.argv)
    assert "--web.listen-address=127.0.0.1:9123" in command.argv
    assert sorted(Path("/").glob(config["rule_files"][0].lstrip("/"))) == RULES
