"""Page about a verdict: how the versions of a registered model did over time, and how what came in drifted."""

import dataclasses
import datetime
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from .. import lake
from ..config import Config, check_name, leaves
from ..quality import report
from ..runs import registry
from . import evidence, verdict

_PARTS = 12  # of the time, at the end of each of which the evidence is looked at
_COLOURS = ("tab:blue", "tab:orange")


def judge(spark, config: Config) -> dict:
    """`verdict.verdict` on the challenger of `verdict.model` as a job, and its page."""
    return judged(config.lake, config.verdict.model, config.verdict.act)


def judged(root: str, name: str, act: bool) -> dict:
    """`verdict.verdict`, with the URL of its page as `page`."""
    url = page_url(root, name)
    lake.check_file(url, "page")
    found = verdict.recorded(root, name)
    course = list(_course(found))
    answer = verdict.acted(root, verdict.judged(found), act)
    html = report.page(
        name,
        _subtitle(found),
        _cards(answer),
        [*_sections(found, course), _promotions(root, name)],
        list(leaves(answer)),
    )
    lake.write_bytes(url, html)
    return {**answer, "page": url}


def page_url(root: str, name: str) -> str:
    return lake.join(lake.to_url(root), "reports", "verdicts", f"{check_name('model', name)}.html")


def _course(found: verdict.Recorded) -> Iterator[dict]:
    """Of each part of the time: its end, `judged` of all until then, `drift` and `requests` of the part alone."""
    times = found.rows["at"]
    if not len(times):
        return
    first, last = pc.min(times).as_py(), pc.max(times).as_py()
    begin = first
    for part in range(1, _PARTS + 1):
        end = first + (last - first) * part / _PARTS
        until = dataclasses.replace(found, rows=_between(found.rows, first, end), training=None)
        alone = _between(found.rows, begin, end, part == 1)
        numbers = alone.filter(pc.equal(alone["kind"], "request"))["version"].to_pylist()
        yield {
            "at": end,
            "judged": verdict.judged(until),
            "drift": verdict.drift(found.training, alone),
            "requests": {str(number): numbers.count(number) for number in found.numbers},
        }
        begin = end


def _between(rows: pa.Table, begin: datetime.datetime, end: datetime.datetime, with_first: bool = True) -> pa.Table:
    kind = rows.schema.field("at").type
    after = (pc.greater_equal if with_first else pc.greater)(rows["at"], pa.scalar(begin, kind))
    return rows.filter(pc.and_(after, pc.less_equal(rows["at"], pa.scalar(end, kind))))


def _subtitle(found: verdict.Recorded) -> str:
    champion = f"version {found.champion['version']}, run {found.champion['run']}"
    if found.challenger is None:
        return f"{champion}; no challenger"
    rival = found.challenger
    return f"{champion}; challenged by version {rival['version']}, run {rival['run']}, since {rival['at'][:16]}"


def _cards(answer: dict) -> list[tuple[str, str, str]]:
    cards = [("verdict", answer["verdict"], answer.get("why", ""))]
    if "difference" in answer:
        low, high = answer["interval"]
        note = f"{low:+.1%} to {high:+.1%}, at a level of {evidence.LEVEL:.0%}; p = {answer['p']:g}"
        cards.append(("difference", f"{answer['difference']:+.1%}", note))
    cards.append(("done", answer["acted"], "to the challenger"))
    drift = answer["drift"]
    if drift["class_stability"] is not None:
        cards.append(("class stability", f"{drift['class_stability']:.3f}", "over 0.25 is usually called a shift"))
    if drift["frechet"] is not None:
        note = f"of images that came in from the training data's; floor {drift['frechet_floor']:.4g}"
        cards.append(("Fréchet distance", f"{drift['frechet']:.4g}", note))
    return cards


def _sections(found: verdict.Recorded, course: list[dict]) -> Iterator[dict]:
    yield {"title": "Each version", "rows": [_row(number, point) for number, point in _newest(course)]}
    if not course:
        return
    yield {
        "title": "Share of good outcomes, over time",
        "text": f"Of all until then, with intervals at a level of {evidence.LEVEL:.0%}.",
        "pictures": [_rates(found, course)],
    }
    if found.challenger is not None:
        yield {
            "title": "Difference, over time",
            "text": "The challenger's share less the promoted version's; a verdict is due where 0 is outside.",
            "pictures": [_differences(course)],
        }
    yield {"title": "Requests, over time", "pictures": [_requests(found, course)]}
    if any(point["drift"]["class_stability"] is not None for point in course):
        yield {
            "title": "Drift from the training data, over time",
            "text": (
                "Of each part of the time alone: the population stability index of the classes that were answered, and"
                " the Fréchet distance of the images that came in, with what it is of as many draws from the training"
                " data's own moments."
            ),
            "pictures": [_drifts(course)],
        }


def _newest(course: list[dict]) -> list[tuple[str, dict]]:
    return list(course[-1]["judged"]["versions"].items()) if course else []


def _row(number: str, figures: dict) -> dict:
    rate, interval = figures["rate"], figures["interval"]
    return {
        "version": number,
        "requests": f"{figures['requests']:,}",
        "p50": _milliseconds(figures["milliseconds_p50"]),
        "p99": _milliseconds(figures["milliseconds_p99"]),
        "outcomes": f"{figures['outcomes']:,}",
        "people": f"{figures['people']:,}",
        "good": "" if rate is None else f"{rate:.1%} ({interval[0]:.1%} to {interval[1]:.1%})",
    }


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms"


def _rates(found: verdict.Recorded, course: list[dict]) -> dict:
    drawing, axes = report.figure()
    for number, colour in zip(map(str, found.numbers), _COLOURS, strict=False):
        points = [(point["at"], point["judged"]["versions"][number]) for point in course]
        points = [(at, figures) for at, figures in points if figures["rate"] is not None]
        times = [at for at, _ in points]
        axes.plot(times, [figures["rate"] for _, figures in points], color=colour, label=f"version {number}")
        low, high = ([figures["interval"][end] for _, figures in points] for end in (0, 1))
        axes.fill_between(times, low, high, color=colour, alpha=0.15)
    return _over_time(drawing, axes)


def _differences(course: list[dict]) -> dict:
    drawing, axes = report.figure()
    times = [point["at"] for point in course]
    axes.plot(times, [point["judged"]["difference"] for point in course], label="difference")
    low, high = ([point["judged"]["interval"][end] for point in course] for end in (0, 1))
    axes.fill_between(times, low, high, alpha=0.15, label="interval")
    axes.axhline(0, color="black", linewidth=0.8)
    return _over_time(drawing, axes)


def _requests(found: verdict.Recorded, course: list[dict]) -> dict:
    drawing, axes = report.figure()
    times = [point["at"] for point in course]
    for number, colour in zip(map(str, found.numbers), _COLOURS, strict=False):
        values = [point["requests"][number] for point in course]
        axes.plot(times, values, color=colour, marker=".", label=f"version {number}")
    axes.set_ylim(0, 1.1 * max(max(point["requests"].values()) for point in course) or 1)
    return _over_time(drawing, axes)


def _drifts(course: list[dict]) -> dict:
    drawing, axes = report.figure()
    names = {"class_stability": "class stability", "frechet": "Fréchet distance", "frechet_floor": "its floor"}
    for name, label in names.items():
        points = [(point["at"], point["drift"][name]) for point in course if point["drift"][name] is not None]
        axes.plot([at for at, _ in points], [value for _, value in points], marker=".", label=label)
    axes.set_yscale("log")
    return _over_time(drawing, axes)


def _over_time(drawing, axes) -> dict:
    axes.tick_params(axis="x", rotation=20)
    return report.drawn(drawing, axes)


def _promotions(root: str, name: str) -> dict:
    table = registry.read(root, name)
    runs = {entry["version"]: entry for entry in table["versions"]}
    rows = [
        {"at": event["at"], "version": event["version"], "run": runs.get(event["version"], {}).get("run", "")}
        for event in table["history"]
    ]
    return {"title": "Promotions", "rows": rows}
