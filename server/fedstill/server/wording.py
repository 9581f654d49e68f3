"""How the numbers of a run are said: bytes, scores, durations, and the verdict in one sentence."""

from __future__ import annotations

from fedstill.server.summary import Summary, TaskResult

NONE = "–"
"""Stands for a number that is not there."""

_SPACE = "\u00a0"  # a number and its unit stay on one line


def size(number: float) -> str:
    """Bytes with three digits, in powers of 1000: "12.3 kB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{_digits(number, whole=unit == 'B')}{_SPACE}{unit}"
        number /= 1000
    return f"{_digits(number)}{_SPACE}TB"


def magnitude(number: int) -> str:
    """A large number with three digits: "11.2 M"."""
    if number < 1000:
        return str(number)
    thousands = number / 1000
    for unit in ("k", "M"):
        if thousands < 999.5:
            return f"{_digits(thousands)}{_SPACE}{unit}"
        thousands /= 1000
    return f"{_digits(thousands)}{_SPACE}G"


def score(value: float | None, *, share: bool) -> str:
    """A measure: in per cent if it is a share."""
    if value is None:
        return NONE
    return f"{100 * value:.1f}{_SPACE}%" if share else _signed(f"{value:.4g}")


def gain(value: float | None, *, share: bool) -> str:
    """A difference of measures with its sign: in percentage points if they are shares."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}" if share else f"{value:+.3g}"
    return _signed("0.0" if text in ("+0.0", "-0.0") else text)


def duration(seconds: float) -> str:
    """Seconds as people say them: "3 min 12 s"."""
    if seconds < 59.95:
        return f"{seconds:.2g}{_SPACE}s" if seconds < 1 else f"{seconds:.1f}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s"
    return f"{minutes // 60}{_SPACE}h {minutes % 60}{_SPACE}min"


def measure_name(measure: str) -> str:
    """A measure as a reader names it."""
    own = measure.startswith("own-")
    name = measure.removeprefix("own-").replace("-", " ") or "score"
    return f"{name} on own data" if own else name


def against_fedavg(summary: Summary) -> str:
    """The run's bytes beside those that FedAvg would have sent; "" if there is nothing to compare."""
    saving = summary.saving
    if saving is None:
        return ""
    if saving >= 1.15:
        return f"FedAvg would have sent {_times(saving)} as much"
    if saving <= 1 / 1.15:
        return f"{_times(1 / saving)} as much as FedAvg would have sent"
    return "about as much as FedAvg would have sent"


def count(number: int, noun: str) -> str:
    """A number with its noun, of which the first word takes the plural: "2 answers rejected"."""
    first, *rest = noun.split(" ")
    return " ".join([str(number), first if number == 1 else f"{first}s", *rest])


def verdict(summary: Summary) -> str:
    """What came out of a run, in one sentence."""
    if not summary.rounds:
        return "No round has been committed yet."
    done = f"{'' if summary.finished else f'{summary.rounds} of '}{count(summary.planned, 'round')}"
    said = [_of_task(task, several=len(summary.tasks) > 1) for task in summary.tasks if task.measure]
    text = f"After {done} of {summary.algorithm}, " + ("; ".join(said) or "nothing was measured")
    if summary.exchanges:
        text += f", at {size(summary.round_up)} up and {size(summary.round_down)} down per client and round"
        comparison = against_fedavg(summary)
        text += f" ({comparison})" if comparison else ""
        text += f"; {size(summary.up + summary.down)} in all"
    return text + "."


def _of_task(task: TaskResult, *, several: bool) -> str:
    name = measure_name(task.measure) + (f" on {task.name}" if several else "")
    alone, after = score(task.alone, share=task.share), score(task.after, share=task.share)
    if task.after is None:
        return f"the {name} of the server's model is {score(task.teacher, share=task.share)}"
    who = count(sum(client.after is not None for client in task.clients), "client")
    if task.gain is None or task.alone is None:
        return f"the mean {name} of {who} is {after}"
    change = gain(task.gain, share=task.share) + (" points" if task.share else "")
    who = count(task.compared, "client")
    if change[0] not in "+−":
        return f"the mean {name} of {who} is {after}, the same as alone"
    return (
        f"the mean {name} of {who} is {after}, {'up' if task.gain > 0 else 'down'} from {alone} alone "
        f"({change}; {task.gained} of {task.compared} gained)"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:,.0f} times"


def _digits(value: float, *, whole: bool = False) -> str:
    if whole:
        return f"{value:.0f}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
