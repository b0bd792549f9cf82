"""What makes two runs the same, on whatever machine and backend: only the same can be continued.

How a run is continued is said by `edgeq.run.resume`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgeq.calibration.texts import SELF
from edgeq.checkpoint.reader import FORMAT_VERSION, HEAD_RULES, Checkpoint
from edgeq.protocols import ModelSource
from edgeq.recipe.recipe import Recipe, recipe_settings
from edgeq.version import __version__

KEYS = ("format_version", "edgeq", "model", "source", "recipe", "calibration")
"""What identifies a run and stands in the head of its checkpoint."""
IMATRIX = "imatrix"
"""What else identifies a run by an importance matrix, and stands in the head of its checkpoint."""
WRITTEN = (
    f" ({SELF}: a model writes other text on another framework; "
    "use the --backend that the run was started with)"
)
Identity = Mapping[str, Any]


def identify(
    source: ModelSource,
    recipe: Recipe,
    calibration: Mapping[str, Any] | None,
    companions: Mapping[str, bytes],
    *,
    imatrix: Mapping[str, str] | None = None,
) -> Identity:
    """Identify a run, in data as it comes back from JSON; equal ones write the same bytes.

    imatrix names the file that weighs its search for scales; without one nothing is said of it.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "edgeq": __version__,
        "model": source.record.name,
        "source": {"fingerprint": source.fingerprint(), "dtype": source.record.dtype},
        "recipe": recipe_settings(recipe),
        "calibration": calibration,
        "companions": hash_companions(companions),
        **({} if imatrix is None else {IMATRIX: imatrix}),
    }
    stored: Identity = json.loads(json.dumps(identity))
    return stored


def identity_of(checkpoint: Checkpoint) -> Identity:
    """Read the identity of the run that made a checkpoint."""
    known = {key: checkpoint.head.get(key) for key in KEYS}
    known |= {IMATRIX: checkpoint.head[IMATRIX]} if IMATRIX in checkpoint.head else {}
    return {**known, "companions": hash_companions(checkpoint.companions())}


def check_identity(stored: Any) -> None:
    """Refuse what is no identity of a run. Raises: KeyError, TypeError saying what is wrong."""
    for key in (*KEYS, "companions"):
        value = stored[key]
        if key in HEAD_RULES and key != "companions" and not HEAD_RULES[key][1](value):
            raise TypeError(f"its {key} is none")
    if not HEAD_RULES[IMATRIX][1](stored.get(IMATRIX)):
        raise TypeError(f"its {IMATRIX} is none")
    if not isinstance(stored["companions"], dict):
        raise TypeError("its companions are none")


def hash_companions(companions: Mapping[str, bytes]) -> dict[str, str]:
    """Hash the tokenizer files and the like that go into a checkpoint, by SHA-256."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(companions.items())}


def differences(before: Identity, now: Identity) -> list[str]:
    """Describe how two runs differ, in the words of a user; empty where they do not."""
    plain = {"edgeq": "edgeq version", "format_version": "checkpoint format", "model": "model"}
    found = []
    for key, what in plain.items():
        if before.get(key) != now[key]:
            found.append(_changed(what, before.get(key), now[key]))
    if before.get("model") == now["model"] and before.get("source") != now["source"]:
        found.append("model: its weights or config are others")
    for name in _differing(before, now, "companions"):
        found.append(f"model: its file {name} is another")
    old = before.get("recipe") or {}
    if set(now["recipe"]) - set(old):
        found.append("edgeq: it was begun by an older one, which computed otherwise")
        return found
    for name in _differing(before, now, "recipe"):
        found.append(_changed(f"recipe setting {name}", old.get(name), now["recipe"].get(name)))
    if before.get("calibration") != now["calibration"]:
        found.append(_changed_texts(before.get("calibration") or {}, now["calibration"] or {}))
    if before.get(IMATRIX) != now.get(IMATRIX):
        found.append(_changed_matrix(before.get(IMATRIX) or {}, now.get(IMATRIX) or {}))
    return found


def _changed_matrix(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the files of importance matrices where these have other names, else say they differ."""
    old, new = before.get("name"), now.get("name")
    return (
        "importance matrix: it is another"
        if old == new
        else _changed("importance matrix", old, new)
    )


def _changed_texts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name texts and shares where these are others, else say that the texts are."""
    old, new = _text_shares(before), _text_shares(now)
    if old != new:
        return f"calibration text: was {old or 'none'}, now {new or 'none'}"
    return "calibration text: it is another" + (WRITTEN if f"{SELF}=" in new else "")


def _text_shares(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{text['name']}={text['share']:g}" for text in record.get("texts", ()))


def _differing(before: Identity, now: Identity, key: str) -> Iterator[str]:
    old, new = before.get(key) or {}, now[key]
    return (name for name in sorted({*old, *new}) if old.get(name) != new.get(name))


def _changed(what: str, before: Any, now: Any) -> str:
    return f"{what}: was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
