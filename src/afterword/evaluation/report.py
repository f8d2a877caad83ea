"""An evaluation as one HTML page with a plot, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from afterword.evaluation.comparison import ModelRun, Pairing, Summary
from afterword.evaluation.outcomes import ChoiceOutcome, Outcome, best, deciding_measure
from afterword.evaluation.statistics import Share
from afterword.evaluation.tasks import ChoiceItem, Item, Task

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#211e1a;background:#fdfbf7}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd6ca;text-align:left;"
    "vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font-size:.85em}"
)
_COLOURS = ("#27507a", "#c86d28", "#5d7380", "#94804f")
_LEFT, _WIDTH, _ROW, _BAR = 16, 640, 38, 12
_MOST_ITEMS = 200


def report(task: Task, runs: Sequence[ModelRun], summary: Summary) -> str:
    """Returns the page: figures, plot, paired tests, and items that were answered wrong."""
    title = f"{task.name}: {', '.join(run.model for run in runs)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{summary.items} items, SHA-256 of the file {escape(task.digest)}.</p>",
        "<p>Intervals are Wilson's, of 95 %.</p>",
        _figures(runs, summary),
        plot(summary),
        *map(_pairing, summary.pairs),
        _items(task, runs),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def plot(summary: Summary) -> str:
    """Returns an SVG: for each measure a bar for each model, with its interval."""
    rows = list(_rows(summary))
    height = len(rows) * _ROW + 30
    size = f'width="{_LEFT + _WIDTH + 64}" height="{height}" overflow="visible"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-size="12">',
        f"<title>{escape(summary.task)}</title>",
    ]
    for tick in range(5):
        x = _LEFT + _WIDTH * tick / 4
        drawn.append(
            f'<line x1="{x}" x2="{x}" y1="0" y2="{height - 22}" stroke="#ddd6ca"/>'
            f'<text x="{x}" y="{height - 8}" text-anchor="middle">{tick * 25} %</text>'
        )
    for i, (label, value, colour) in enumerate(rows):
        # A label has a line of its own, because names of models may be long.
        y = i * _ROW + _ROW - _BAR
        low, high = (_LEFT + _WIDTH * each for each in (value.low, value.high))
        drawn.append(
            f'<text x="{_LEFT}" y="{y - _BAR}">{escape(label)}</text>'
            f'<rect x="{_LEFT}" y="{y - _BAR / 2}" width="{_WIDTH * value.value:.1f}" '
            f'height="{_BAR}" fill="{colour}"/>'
            f'<path d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8" '
            'stroke="#211e1a" fill="none"/>'
            f'<text x="{high + 6:.1f}" y="{y + 4}">{value.value:.3f}</text>'
        )
    return "".join([*drawn, "</svg>"])


def _rows(summary: Summary) -> Iterator[tuple[str, Share, str]]:
    names = next(iter(summary.models.values()))
    for measure in names:
        for i, (model, shares) in enumerate(summary.models.items()):
            yield f"{measure} · {model}", shares[measure], _COLOURS[i % len(_COLOURS)]


def _figures(runs: Sequence[ModelRun], summary: Summary) -> str:
    rows = []
    for run in runs:
        for measure, value in summary.models[run.model].items():
            stderr = "" if value.stderr is None else f"{value.stderr:.4f}"
            cells = [f"{value.value:.4f}", f"{value.low:.4f} to {value.high:.4f}", stderr]
            rows.append(
                [run.model, run.fingerprint, measure, *cells, str(value.items)],
            )
    names = ["model", "fingerprint", "measure", "share", "interval", "standard error", "items"]
    return _table(names, rows, first_number=3)


def _pairing(pair: Pairing) -> str:
    rows = [
        [
            name,
            str(t.both),
            str(t.only_first),
            str(t.only_second),
            str(t.neither),
            f"{t.p_value:.4g}",
        ]
        for name, t in pair.tests.items()
    ]
    names = ["measure", "both", f"only {pair.first}", f"only {pair.second}", "neither", "p"]
    head = f"<h2>{escape(pair.first)} and {escape(pair.second)}</h2>"
    meaning = (
        "<p>McNemar's exact test, two-sided: if the models were equally good, their differences "
        "would be at least this uneven with probability p.</p>"
    )
    return head + meaning + _table(names, rows, first_number=1)


def _items(task: Task, runs: Sequence[ModelRun]) -> str:
    """Returns the items that some model got wrong."""
    rows = []
    deciding: dict[str, None] = {}
    for index, item in enumerate(task.items):
        outcomes = [run.outcomes[index] for run in runs]
        measure = deciding_measure(outcomes[0])
        deciding[measure] = None
        if all(outcome.met[measure] for outcome in outcomes):
            continue
        asked, wanted = _asked(item)
        rows.append([str(index + 1), asked, wanted, *(_answer(item, each) for each in outcomes)])
    names = ["item", "asked", "right", *(run.model for run in runs)]
    left = f"<p>The first {_MOST_ITEMS} of {len(rows)}.</p>" if len(rows) > _MOST_ITEMS else ""
    shown = _table(names, rows[:_MOST_ITEMS], first_number=len(names), fixed=True)
    by = f"<p>By {' and '.join(deciding)}.</p>"
    return f"<h2>Items that were answered wrong</h2>{by}{left}{shown}"


def _asked(item: Item) -> tuple[str, str]:
    if isinstance(item, ChoiceItem):
        return item.context, item.choices[item.label]
    return item.prompt, " | ".join(item.targets)


def _answer(item: Item, outcome: Outcome) -> str:
    if isinstance(item, ChoiceItem) and isinstance(outcome, ChoiceOutcome):
        return item.choices[best(outcome.logprobs)]
    return "" if isinstance(outcome, ChoiceOutcome) else outcome.text


def _table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    first_number: int,
    fixed: bool = False,
) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="n">{escape(cell)}</td>'
            if i >= first_number
            # Browsers leave out a line end right behind the tag.
            else f'<td><pre dir="auto">\n{escape(cell)}</pre></td>'
            if fixed
            else f"<td>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
