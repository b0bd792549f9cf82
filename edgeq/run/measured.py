"""What was measured of a finished run: quality, answers, times, memory and sizes.

It lies in measured.json beside report.json. Unlike that it depends on time and machine, so no hash
of a checkpoint counts it, and a checkpoint is complete without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.json_files import finite, read_json, write_json
from edgeq.files.ownership import MEASURED_FILE, PAGE_FILE
from edgeq.files.plain_files import inside
from edgeq.run.numbers import check_numbers, is_count

__all__ = ["MEASURED_FILE", "PAGE_FILE", "Measured", "read_measured", "write_measured"]

VERSION = 1
"""Of the content of measured.json."""
MEASURE_AGAIN = "remove it, and measure again with edgeq evaluate"


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a finished run, as measured.json stores them.

    quality is what `edgeq.measuring.evaluate` returned, None where it was not asked for. answers
    have each a "prompt" and what the "original" and the "quantized" model wrote after it.

    notes and advice are what the run's last screen said of it, on its source and exports too.

    Units: seconds of wall-clock time by stage; memory_peak, of the process, and sizes in bytes.
    """

    quality: Mapping[str, Any] | None = None
    answers: Sequence[Mapping[str, str]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_peak: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    advice: Sequence[str] = ()


def write_measured(checkpoint: Checkpoint, measured: Measured) -> None:
    """Write what was measured beside the report; what JSON cannot hold, such as NaN, is null."""
    content = {"version": VERSION, **finite(asdict(measured))}
    if content["quality"] is not None and "target" in content["quality"]:
        named = place_in(checkpoint.path, str(content["quality"]["target"]))
        content["quality"] = {**content["quality"], "target": named}
    write_json(checkpoint.path / MEASURED_FILE, content)


def place_in(folder: Path, target: str) -> str:
    """Name a target as seen from a checkpoint, so that no path of this machine is stored."""
    path = Path(target)
    return (
        path.resolve().relative_to(folder.resolve()).as_posix()
        if inside(path, folder)
        else (path.name)
    )


def read_measured(checkpoint: Checkpoint) -> Measured | None:
    """Read what was measured of a checkpoint; None where nothing was.

    Raises: BadInput for a file that is damaged, or of another version.
    """
    path = checkpoint.path / MEASURED_FILE
    if not path.exists() and not path.is_symlink():
        return None
    if not inside(path, checkpoint.path):
        raise BadInput(f"{str(path)!r} is a link that leads out of its checkpoint; remove it")
    stored = read_json(path, mend=MEASURE_AGAIN)
    version = stored.pop("version", None)
    if isinstance(version, bool) or version != VERSION:
        raise BadInput(
            f"{str(path)!r}: measurements of version {version!r:.40}, where this edgeq reads "
            f"{VERSION}; use the edgeq that wrote them, or remove the file"
        )
    wrong = misfit(stored, MEASURED, "")
    if wrong is not None:
        raise BadInput(f"{str(path)!r}: {wrong}; it is damaged, {MEASURE_AGAIN}")
    return Measured(
        stored.get("quality"),
        stored.get("answers") or (),
        stored.get("seconds") or {},
        stored.get("memory_peak"),
        stored.get("sizes") or {},
        stored.get("notes") or (),
        stored.get("advice") or (),
    )


Rule = Callable[[Any], bool] | Mapping[str, Any] | list[Any]
"""What a value of measured.json may be: what a function says, an object with such keys, or a list
of what the one entry says. Null fits each; keys without a rule are not looked at."""


def misfit(value: Any, rule: Rule, place: str) -> str | None:
    """Name the first value that does not fit its rule; None where all do."""
    if value is None:
        return None
    if isinstance(rule, list):
        if not isinstance(value, list):
            return f"{place or 'it'} is no list"
        found = (misfit(item, rule[0], f"{place}[{n}]") for n, item in enumerate(value))
    elif isinstance(rule, Mapping):
        if not isinstance(value, dict):
            return f"{place or 'it'} is no object"
        found = (
            misfit(value.get(key), each, f"{place}.{key}"[not place :])
            for key, each in rule.items()
        )
    else:
        return None if rule(value) else f"{place} is {value!r:.40}"
    return next((each for each in found if each is not None), None)


def is_text(value: Any) -> bool:
    """Say whether a value is text."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number."""
    try:
        check_numbers({"": value})
    except ValueError:
        return False
    return True


def is_interval(value: Any) -> bool:
    """Say whether a value is a list of two numbers, the lower one first."""
    pair = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
    return pair and value[0] <= value[1]


def by_name(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Make a rule for an object whose values all fit one rule."""

    def rule(value: Any) -> bool:
        return isinstance(value, dict) and all(
            each is None or holds(each) for each in value.values()
        )

    return rule


MEANS: Mapping[str, Rule] = {
    "tokens": is_count,
    "perplexity": is_number,
    "reference_perplexity": is_number,
    "kl": is_number,
    "top1_agreement": is_number,
    "intervals": by_name(is_interval),
}
QUALITY: Mapping[str, Rule] = {
    **MEANS,
    "target": is_text,
    "runtime": is_text,
    "reference": is_text,
    "bytes": is_count,
    "bits_per_weight": is_number,
    "windows": [{"text": is_text, "tokens": is_count, "kl": is_number}],
    "by_position": [{"from": is_count, "to": is_count, "kl": is_number}],
    "worst_tokens": [
        {
            **dict.fromkeys(("before", "token", "original_says", "target_says"), is_text),
            "kl": is_number,
        }
    ],
    "texts": [{"name": is_text, **MEANS}],
    "tasks": [
        {
            "name": is_text,
            "accuracy": is_number,
            "interval": is_interval,
            "reference_accuracy": is_number,
            "items": is_count,
        }
    ],
}
MEASURED: Mapping[str, Rule] = {
    "quality": QUALITY,
    "answers": [dict.fromkeys(("prompt", "original", "quantized"), is_text)],
    "seconds": by_name(is_number),
    "memory_peak": is_count,
    "sizes": by_name(is_count),
    "notes": [is_text],
    "advice": [is_text],
}
