"""`make board-pictures`: the boards as pictures, of a stack with Prometheus under a load with faults in it.

Each panel is at its place on the board; its curves are what Prometheus answers for its expressions over the time of the load. MINUTES (7)
changes how long that is; KEEP=1 keeps the answers in `.bench/board-pictures.json`, and REUSE=1 draws these again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, now_ms
from infra.embedded.stack_folder import Folder
from infra.monitoring import draw_boards
from query.keys import Keys
from tests.chaos.outages import away
from tests.conftest import adclick
from tests.monitoring.rehearsal.load import LiveLoad, SteadyQuestions, make_event, send_events

ROOT = Path(__file__).parents[2]
PICTURES, ANSWERS = ROOT / "docs" / "pictures", ROOT / ".bench" / "board-pictures.json"
_RATE, _STEP_S, _OLD_EVENTS = 300, 5, 4_000
_FAULT_S = 60.0
# Tenants: name, requests a second that the key allows, pause between requests of a thread.
_TENANTS = (("first", 50.0, 0.1), ("second", 50.0, 0.4), ("limited", 0.5, 0.3), ("seldom", 50.0, 2.0))
_BAND, _GRID = "#f3e3c8", "#e6e6e6"
_COLOURS = (
    "#1f60c4",
    "#c4162a",
    "#37872d",
    "#fa6400",
    "#8f3bb8",
    "#00897b",
    "#b7770d",
    "#616161",
    "#d6409f",
    "#3949ab",
)
Json = dict[str, Any]


def boards() -> dict[str, Json]:
    """The boards as Grafana gets them."""
    return {name: json.loads(draw_boards.draw(name)) for name in draw_boards.BOARDS}


# -- the load -----------------------------------------------------------------------------------------------------------


def record(minutes: float) -> Json:
    """Run a stack under load, and return the answers for all panels: by board, panel and expression."""
    with tempfile.TemporaryDirectory(prefix="adclick-boards-") as work:
        folder = Folder(Path(work) / "stack")
        started = adclick("up", "--detach", "--observe", "--json", "--dir", str(folder.path))
        assert started.returncode == 0, started.stderr
        try:
            return _record(folder, json.loads(started.stdout)["prometheus"], minutes * 60)
        finally:
            adclick("down", "--dir", str(folder.path))


def _record(folder: Folder, prometheus: str, seconds: float) -> Json:
    settings = App(str(folder.path), False, False, True).settings
    yesterday_ms = now_ms() // DAY_MS * DAY_MS - DAY_MS
    send_events(settings, [make_event(yesterday_ms + n * DAY_MS // _OLD_EVENTS) for n in range(_OLD_EVENTS)])
    load, began = LiveLoad(settings, _RATE), time.time()
    keys, questions = Keys(ClickHouse(settings.clickhouse, settings.database)), list[SteadyQuestions]()
    for name, rate, pause_s in _TENANTS:
        _, key = keys.create(name, None, admin=False, rate=rate, burst=5 * rate, lasts_ms=None)
        questions.append(SteadyQuestions(settings.http, key, 1, pause_s))
    bands = list[tuple[float, float, str]]()

    def fault(share: float, what: str, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        time.sleep(max(0.0, began + share * seconds - time.time()))
        begun = time.time()
        begin()
        time.sleep(_FAULT_S)
        end()
        bands.append((begun, time.time(), what))
        print(what, flush=True)

    try:
        fault(0.25, "5 % of the messages are cut off", lambda: _spoil(load, 0.05), lambda: _spoil(load, 0.0))
        ingest = folder.processes()["ingest-0"]
        fault(0.45, "the ingest worker hangs", lambda: ingest.send_signal(signal.SIGSTOP), lambda: _continue(ingest))
        outage = away(folder, "clickhouse")
        fault(0.65, "ClickHouse is away", outage.__enter__, lambda: outage.__exit__(None, None, None))
        date = time.strftime("%Y-%m-%d", time.gmtime(yesterday_ms / 1000))
        run = adclick("reconcile", "--date", date, "--dir", str(folder.path))
        print(f"reconcile {date}: exit {run.returncode} {run.stderr[-300:] if run.returncode else ''}", flush=True)
        time.sleep(max(0.0, began + seconds - time.time()))
        answers = {name: _answers(prometheus, board, began, time.time()) for name, board in boards().items()}
        return {"start": began, "end": time.time(), "bands": bands, "boards": answers}
    finally:
        for each in questions:
            each.close()
        load.close()


def _spoil(load: LiveLoad, share: float) -> None:
    load.invalid = share


def _continue(process: psutil.Process) -> None:
    process.send_signal(signal.SIGCONT)


def _answers(prometheus: str, board: Json, start_s: float, end_s: float) -> Json:
    answers = Json()
    for panel in board["panels"]:
        for target in panel.get("targets") or ():
            expression = target["expr"].replace("$job", "adclick")
            parameters = {"query": expression, "start": start_s, "end": end_s, "step": _STEP_S}
            response = httpx.get(f"{prometheus}/api/v1/query_range", params=parameters, timeout=60)
            response.raise_for_status()
            answers[target["expr"]] = response.json()["data"]["result"]
    return answers


# -- drawing ------------------------------------------------------------------------------------------------------------


def draw(name: str, board: Json, answers: Json) -> Path:
    """One picture of a board."""
    panels = board["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    inches = height * 0.36 + 0.5
    figure = Figure(figsize=(15, inches), dpi=80, facecolor="white")
    bands = "; ".join(f"{number + 1}: {what}" for number, (_, _, what) in enumerate(answers["bands"]))
    figure.text(0.01, 1 - 0.2 / inches, f"adclick: {name}", fontsize=14, weight="bold", va="center")
    figure.text(0.99, 1 - 0.2 / inches, f"shaded: {bands}", fontsize=9, va="center", ha="right")
    for panel in panels:
        place = panel["gridPos"]
        top = 1 - (place["y"] * 0.36 + 0.5) / inches
        if panel["type"] == "row":
            figure.text(0.01, top - 0.18 / inches, panel["title"], fontsize=11, weight="bold", va="center")
            continue
        is_figure = panel["type"] == "stat"
        left, right, above, below = 0.045, 0.014, 0.3, 0.3 if is_figure else 0.6
        axes = figure.add_axes((
            place["x"] / 24 + left, top - (place["h"] * 0.36 - below) / inches,
            place["w"] / 24 - left - right, (place["h"] * 0.36 - above - below) / inches,
        ))  # fmt: skip
        _draw_panel(axes, panel, answers, name)
    path = PICTURES / f"board-{name}.png"
    figure.savefig(path)
    # Few colours are enough for lines, and make the file a third of its size.
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)
    return path


def _draw_panel(axes: Axes, panel: Json, answers: Json, board: str) -> None:
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    formatted = UNITS[unit]
    start_s, curves = answers["start"], list[tuple[str, list[float], list[float]]]()
    for target in panel["targets"]:
        for series in answers["boards"][board].get(target["expr"], ()):
            legend = _legend(str(target.get("legendFormat", "")), series["metric"])
            points = [(float(t) - start_s, float(v)) for t, v in series["values"] if v != "NaN"]
            if points:
                curves.append((legend, [t / 60 for t, _ in points], [v for _, v in points]))
    title = panel["title"]
    if panel["type"] == "stat" and curves:
        title += f": {formatted(curves[0][2][-1], 0)}"
    axes.set_title(title, fontsize=9, loc="left", pad=3)
    for number, (begin, end, _) in enumerate(answers["bands"]):
        axes.axvspan((begin - start_s) / 60, (end - start_s) / 60, color=_BAND, lw=0, zorder=0)
        axes.text(
            (begin - start_s) / 60,
            1,
            f" {number + 1}",
            transform=axes.get_xaxis_transform(),
            fontsize=7,
            va="top",
            color="#8a6d3b",
        )
    for number, (legend, times, values) in enumerate(curves):
        axes.plot(
            times,
            values,
            lw=1.4,
            color=_COLOURS[number % len(_COLOURS)],
            label=legend,
            marker="." if len(times) < 3 else None,
        )
    axes.set_xlim(0, (answers["end"] - start_s) / 60)
    largest = max((max(values) for *_, values in curves), default=0.0)
    smallest = min((min(values) for *_, values in curves), default=0.0)
    if not curves:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#888888", fontsize=9)
        axes.set_yticks([])
    alarm = _alarm(panel)
    if alarm is not None and largest > alarm / 5:
        axes.axhline(alarm, color="#e02f44", lw=0.9, ls="--")
        largest = max(largest, alarm)
    top = 1.08 * largest or 1.0
    axes.set_ylim(min(-0.02 * top, smallest), top)
    if curves:
        axes.yaxis.set_major_locator(MaxNLocator(3 if panel["type"] == "stat" else 5))
        axes.yaxis.set_major_formatter(FuncFormatter(formatted))
    axes.xaxis.set_major_locator(MaxNLocator(4 if panel["type"] == "stat" else 10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minute, _: f"{minute:.0f} min"))
    axes.grid(color=_GRID, lw=0.6)
    axes.tick_params(labelsize=7, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if panel["type"] != "stat" and any(legend for legend, *_ in curves):
        columns = max(1, min(5, int(110 / max(12, max(len(legend) for legend, *_ in curves) + 6))))
        axes.legend(
            fontsize=7, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False, borderaxespad=0.2,
            handlelength=1.2, columnspacing=1.0, labelspacing=0.2,
        )  # fmt: skip


def _legend(text: str, labels: dict[str, str]) -> str:
    """Grafana's form with the labels of a series: `{{topic}}/{{partition}}`."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text)


def _alarm(panel: Json) -> float | None:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    values = [step["value"] for step in steps if step.get("value") is not None]
    return float(values[-1]) if values else None


def _scaled(value: float, units: tuple[str, ...], base: float) -> str:
    number = 0
    while abs(value) >= base and number < len(units) - 1:
        value, number = value / base, number + 1
    return f"{value:.3g}{units[number]}"


def _seconds(value: float, _: Any) -> str:
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{value * 1000:.3g} ms"


_THOUSANDS = ("", " k", " M", " G", " T")
UNITS: dict[str, Callable[[float, Any], str]] = {
    "short": lambda value, _: _scaled(value, _THOUSANDS, 1000),
    "cps": lambda value, _: _scaled(value, _THOUSANDS, 1000) + "/s",
    "reqps": lambda value, _: _scaled(value, _THOUSANDS, 1000) + "/s",
    "percentunit": lambda value, _: f"{value * 100:.3g} %",
    "bytes": lambda value, _: _scaled(value, (" B", " KiB", " MiB", " GiB", " TiB"), 1024),
    "decbytes": lambda value, _: _scaled(value, (" B", " kB", " MB", " GB", " TB"), 1000),
    "s": _seconds,
}
"""Grafana's name of a unit → how a value is written."""


def main() -> None:
    """Read the environment and run."""
    # What was started is stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    mpl.use("agg")
    if os.environ.get("REUSE"):
        answers = json.loads(ANSWERS.read_text())
    else:
        answers = record(float(os.environ.get("MINUTES") or 7))
        if os.environ.get("KEEP"):
            ANSWERS.parent.mkdir(exist_ok=True)
            ANSWERS.write_text(json.dumps(answers))
    for name, board in boards().items():
        path = draw(name, board, answers)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
