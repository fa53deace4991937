"""Looks for one event in every place that may have it, and says of each place what was searched.

A place that cannot be looked at becomes a problem of the trace; the others are searched all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infra.clock import DAY_MS, HOUR_MS, day_start_ms, iso
from infra.errors import AdclickError, Unavailable
from infra.file_store import FileStore
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.archive.search import ArchivedMessage, FilesSearch, TopicSearch, files_with, search_files, search_topic
from ingest.dead_letters.letters import Letter, LettersSearch, find_letters
from ingest.dead_letters.sent import SentLetters
from ingest.decoding.json_fields import valid_id
from ingest.dedup.recorded_ids import RecordedId, RecordedIds, find_recorded
from ingest.events import MAX_EVENT_ID_BYTES, Reason
from ingest.unread_events import UnreadSearch, find_unread
from query.trace.verdicts import order_of_arrival

T = TypeVar("T")
Progress = Callable[[str, int | None], Any]
"""A context manager with the steps of a search: see `App.progress`."""

DEAD_LETTERS, SENT, IDS, EVENTS, TOPIC, ARCHIVE, WINDOWS, BILLING = (
    "dead letters", "marks of letters sent again", "dedup ids", "ad-events", "ad-archive", "archive", "windows", "runs and statements",
)  # fmt: skip
"""The places that are looked at, as problems name them."""
_BACKENDS = {
    DEAD_LETTERS: "kafka", SENT: "kafka", IDS: "redis", EVENTS: "kafka", TOPIC: "kafka", ARCHIVE: "archive", WINDOWS: "router",
    BILLING: "clickhouse",
}  # fmt: skip


@dataclass(frozen=True)
class SearchRange:
    """Which hours of the archive are searched: those that overlap [start_ms, end_ms); `end_ms` None: to the newest."""

    start_ms: int
    end_ms: int | None = None

    def has(self, folder: str) -> bool:
        """Whether the hour of a folder is searched."""
        hour_ms = archive_files.folder_start_ms(folder)
        return self.start_ms < hour_ms + HOUR_MS and (self.end_ms is None or hour_ms < self.end_ms)

    def __str__(self) -> str:
        return f"{iso(self.start_ms)} to {'now' if self.end_ms is None else iso(self.end_ms)}"


@dataclass
class TracedEvent:
    """What was found about an id, and what was searched for it. `problems`: by place, why it could not be searched as a whole."""

    event_id: str
    range: SearchRange
    archive: str
    messages: list[ArchivedMessage] = field(default_factory=list)
    """Each message once, in the order of their arrival."""
    letters: LettersSearch = field(default_factory=LettersSearch)
    sent: SentLetters = field(default_factory=SentLetters)
    recorded: RecordedIds = field(default_factory=RecordedIds)
    unread: UnreadSearch = field(default_factory=UnreadSearch)
    files: FilesSearch = field(default_factory=FilesSearch)
    topic: TopicSearch = field(default_factory=TopicSearch)
    problems: dict[str, str] = field(default_factory=dict)
    _away: dict[str, str] = field(default_factory=dict)

    @property
    def is_found(self) -> bool:
        """Whether any place has the id."""
        return bool(self.messages or self.letters.letters or self.recorded.found or self.unread.found)

    @property
    def pending(self) -> list[RecordedId]:
        """What is recorded in Redis, and neither in the archive nor on its way there."""
        places = {m.place for m in self.messages}
        return [r for r in self.recorded.found if (r.partition, r.offset) not in places]

    @property
    def rejected_ms(self) -> int | None:
        """When a letter of this id was first written, other than for being too late; as a nightly run has it."""
        times = [x.time_ms for x in self.letters.letters if _is_rejected(x) and valid_id(x.value) == self.event_id]
        return min(times, default=None)

    def describe_problems(self) -> str:
        """The problems in one line, each reason once; empty for none."""
        places = dict[str, list[str]]()
        for place, problem in self.problems.items():
            places.setdefault(problem, []).append(place)
        return "; ".join(f"{', '.join(names)}: {problem}" for problem, names in places.items())

    def attempt(self, place: str, call: Callable[[], T], default: T) -> T:
        """The result of a call, or the default where it fails: the place is then a problem of the trace. A backend that was away once is not
        tried again."""
        backend = _BACKENDS[place]
        if backend in self._away:
            self.problems.setdefault(place, self._away[backend])
            return default
        try:
            return call()
        except AdclickError as error:
            self.problems[place] = str(error)
            if isinstance(error, Unavailable):
                self._away[backend] = str(error)
            return default


def _is_rejected(letter: Letter) -> bool:
    return letter.headers.get("reason") != Reason.TOO_LATE


def find_event(settings: Settings, event_id: str, range_: SearchRange, progress: Progress) -> TracedEvent:
    """Look for an event in all places. Messages are read from `ad-archive` before files are listed, so that none moves past both."""
    store = FileStore(settings.archive)
    traced = TracedEvent(event_id, range_, store.shown)
    with progress("dead letters", None) as bar:

        def advance() -> None:
            bar.advance(bar.tasks[0].id)

        traced.letters = traced.attempt(
            DEAD_LETTERS, lambda: find_letters(settings, event_id, range_.start_ms, advance), traced.letters
        )
    if traced.letters.letters:
        traced.sent = traced.attempt(SENT, lambda: SentLetters.read(settings), traced.sent)
    _note_unfinished(traced, DEAD_LETTERS, traced.letters)
    if not may_be_valid(event_id):
        note_set_aside(traced)
        return traced
    traced.recorded = traced.attempt(IDS, lambda: find_recorded(settings, event_id), traced.recorded)
    traced.unread = traced.attempt(EVENTS, lambda: find_unread(settings, event_id), traced.unread)
    _note_unfinished(traced, EVENTS, traced.unread)
    traced.topic = traced.attempt(TOPIC, lambda: search_topic(settings, event_id), traced.topic)
    try:
        _search_archive(traced, store, progress)
    except Unavailable as error:
        traced.problems[ARCHIVE] = str(error)
        # What was written lately is in ad-archive, too.
        traced.topic = traced.attempt(TOPIC, lambda: search_topic(settings, event_id, range_.start_ms), traced.topic)
    _note_unfinished(traced, TOPIC, traced.topic)
    if traced.files.unreadable:
        traced.problems[ARCHIVE] = "; ".join(traced.files.unreadable[:3])
    # Of a message that is in both, the one with the file.
    traced.messages = order_of_arrival([*traced.topic.messages, *traced.files.messages])
    note_set_aside(traced)
    return traced


def note_set_aside(traced: TracedEvent) -> None:
    """What was set aside unread is a problem of the trace of an event that no place has."""
    if traced.letters.set_aside and not traced.is_found:
        text = f"{traced.letters.set_aside:,} messages were set aside unread: the event may be among them"
        known = traced.problems.get(DEAD_LETTERS)
        traced.problems[DEAD_LETTERS] = f"{known}; {text}" if known else text


def _note_unfinished(traced: TracedEvent, place: str, search: LettersSearch | UnreadSearch | TopicSearch) -> None:
    if search.read < search.waiting:
        traced.problems.setdefault(
            place, f"{search.read:,} of {search.waiting:,} messages were searched before time ran out"
        )


def may_be_valid(event_id: str) -> bool:
    """Whether a valid event may have this id."""
    try:
        return 0 < len(event_id.encode()) <= MAX_EVENT_ID_BYTES
    except UnicodeEncodeError:
        return False


# -- the archive -------------------------------------------------------------------------------------------------


def _search_archive(traced: TracedEvent, store: FileStore, progress: Progress) -> None:
    """Search the range; what Redis has recorded, wherever it lies; and, once the event is found, what else a run looks at. Raises Unavailable."""
    if store.folder is not None and not store.folder.is_dir():
        raise Unavailable(
            f"the archive {store.shown} does not exist", hint="mount it, or correct ADCLICK_ARCHIVE", backend="archive"
        )
    searched = set[str]()
    days = archive_files.day_folders(store)
    _search(traced, store, _files_in(store, days, traced.range), searched, progress)
    named = _places_named(traced)
    if named:
        _search(traced, store, files_with(_files_in(store, days, None), named), searched, progress)
    found = [*traced.files.messages, *traced.topic.messages]
    if found:
        _search(traced, store, _files_in(store, days, _range_of_copies(found)), searched, progress)


def _places_named(traced: TracedEvent) -> dict[int, list[int]]:
    """Offsets by partition of messages that are known of, and not found yet: from ids in Redis, copies, and letters that were too late."""
    found = [*traced.files.messages, *traced.topic.messages]
    places = [(r.partition, r.offset) for r in traced.recorded.found]
    places += [(m.partition, m.copy_of) for m in found if m.copy_of is not None]
    sources = [letter.source for letter in traced.letters.letters if not _is_rejected(letter)]
    places += [(source.partition, source.offset) for source in sources if source is not None]
    named = dict[int, list[int]]()
    for partition, offset in set(places) - {m.place for m in found}:
        named.setdefault(partition, []).append(offset)
    return named


def _range_of_copies(found: Sequence[ArchivedMessage]) -> SearchRange:
    """Where messages of the same id may lie that a run compares these with: under the days before, of and after their events, and, if they
    were too late, under the hours of their arrival, until the last of these arrived."""
    first_ms = min(m.time_ms for m in found) // DAY_MS * DAY_MS - DAY_MS
    last_ms = max(max(m.time_ms // DAY_MS * DAY_MS + 2 * DAY_MS, m.log_time_ms + 1) for m in found)
    return SearchRange(first_ms, last_ms)


def _files_in(store: FileStore, days: Iterable[str], range_: SearchRange | None) -> list[File]:
    files = list[File]()
    for day in days:
        start_ms = day_start_ms(archive_files.folder_date(day))
        if range_ is not None and (
            start_ms + DAY_MS <= range_.start_ms or (range_.end_ms is not None and start_ms >= range_.end_ms)
        ):
            continue
        of_day = archive_files.current_files(archive_files.parse_names(store.files(day)))
        files += [file for file in of_day if range_ is None or range_.has(file.folder)]
    return files


def _search(
    traced: TracedEvent, store: FileStore, files: Sequence[File], searched: set[str], progress: Progress
) -> None:
    """Search the files that were not searched yet."""
    new = [file for file in files if file.name not in searched]
    if not new:
        return
    with progress("files of the archive", len(new)) as bar:
        search = search_files(store, new, traced.event_id, lambda: bar.advance(bar.tasks[0].id))
    searched.update(file.name for file in new)
    traced.files.messages += search.messages
    traced.files.unreadable += search.unreadable
    traced.files.files += search.files
    traced.files.rows += search.rows
