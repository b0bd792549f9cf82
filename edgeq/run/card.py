"""Write the card of a checkpoint or an export: README.md, as people and the hub read it.

It says what the model is, what made it, what was measured, how to run it, and under which terms it
is given. Nothing in it depends on time or place, so that equal runs write equal cards.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from edgeq.checkpoint.certificate import is_sealed, seal
from edgeq.checkpoint.reader import TUNED_KEY, Checkpoint
from edgeq.decoder import ModelRecord
from edgeq.files.hashes import hash_of_file
from edgeq.files.json_files import read_json
from edgeq.files.names import safe_name
from edgeq.files.ownership import CARD_FILE, LEGAL_FILE, MANIFEST_FILE, is_own_card, signed_card
from edgeq.files.plain_files import is_plain_file
from edgeq.files.storage import write_bytes
from edgeq.format_parts import App, Exporter, Format, apps_for, filled
from edgeq.measuring.formats import rounding_notes
from edgeq.registry import all_formats, load_exporter
from edgeq.run.measured import read_measured
from edgeq.run.tuning_report import tuned_line
from edgeq.words import describe_grid, shell_line, show_megabytes

HUB = "https://huggingface.co/"
WEIGHTS = (".gguf", ".onnx", ".data", ".safetensors")
SHORT_CONTEXT = 512  # tokens: enough to try a model
UNKNOWN_LICENSE = "not stated by the base model"
CODE = {"console": "", "python": "python", "swift": "swift"}


def write_checkpoint_card(checkpoint: Checkpoint) -> None:
    """Write the card of a checkpoint, with what was measured of it where something was."""
    write_bytes(checkpoint.path / CARD_FILE, signed_card(checkpoint_card(checkpoint)))


def add_card(folder: Path, checkpoint: Checkpoint, exporter: Exporter) -> Path:
    """Write the card of an export that is complete but for it, and state it in the manifest."""
    seal(folder, checkpoint, card=export_card(checkpoint, exporter, folder))
    return folder / CARD_FILE


def renew_cards(checkpoint: Checkpoint) -> None:
    """Write what was measured since into the cards of a checkpoint and of the exports inside of it.

    Cards that people have changed stay as they are.
    """
    if is_own_card(checkpoint.path / CARD_FILE):
        write_checkpoint_card(checkpoint)
    for described in all_formats():
        folder = checkpoint.path / described.name
        if not is_plain_file(folder / CARD_FILE) or not is_sealed(folder, checkpoint):
            continue
        manifest = read_json(folder / MANIFEST_FILE)
        if manifest["files"].get(CARD_FILE) == hash_of_file(folder / CARD_FILE):
            settings = manifest.get("settings", {})
            options = {option.name: settings.get(option.name) for option in described.options}
            add_card(folder, checkpoint, load_exporter(described.name, options))


def measured_quality(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Give what was measured of a checkpoint or one of its exports; None where nothing was."""
    found = read_measured(checkpoint)
    return None if found is None else found.quality


def checkpoint_card(checkpoint: Checkpoint) -> str:
    """Make the card of a checkpoint: what it is, and how it becomes what runtimes read."""
    name = plain(checkpoint.record.name)
    lines = [
        *front_matter(checkpoint, "edgeq", ["edgeq"]),
        f"# {name}, a checkpoint of edgeq",
        "",
        f"{name}, quantized by edgeq {plain(str(checkpoint.head['edgeq']))}. "
        "Exports are written from these files.",
        "",
        *facts_table(checkpoint, {"size": card_size(checkpoint.stored_bytes())}),
        *quality_lines(checkpoint),
        "## Use it",
        "",
        *code(
            "console",
            [
                shell_line(["edgeq", *talk_words(checkpoint.record, ".")]),
                "edgeq formats .",
            ],
        ),
        "`edgeq formats .` lists the formats that hold it, and `edgeq export . --format FORMAT` "
        "writes one.",
        "",
        *notes_lines(checkpoint.record.notes),
        *terms_lines(checkpoint, f"{kind_of(checkpoint)}-edgeq"),
    ]
    return "\n".join(lines)


def export_card(checkpoint: Checkpoint, exporter: Exporter, folder: Path) -> bytes:
    """Make the card of an export that lies in a directory, complete but for the card."""
    described, name = exporter.format, plain(checkpoint.record.name)
    file = str(read_json(folder / MANIFEST_FILE)["file"])
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    weights = sum(math.prod(checkpoint.shape(tensor)) for tensor in checkpoint.tensor_names())
    facts = {
        "format": f"{described.name}, read by {described.read_by}",
        "size": f"{card_size(size)}, {8 * size / weights:.2f} bits per weight",
    }
    notes = [
        *exporter.notes(checkpoint.record, checkpoint.companions(), checkpoint.grids()),
        *rounding_notes(exporter, checkpoint, folder),
    ]
    path = file if described.suffix else "."
    kind = f"{kind_of(checkpoint)}-{described.name}"
    if described.name == "gguf":  # its file's name says the kind
        kind = f"{Path(file).stem.removeprefix(f'{safe_name(checkpoint.record.name)}-')}-GGUF"
    lines = [
        *front_matter(checkpoint, described.library, [described.name, "edgeq"]),
        f"# {name} for {described.read_by}",
        "",
        f"{name}, quantized by edgeq {plain(str(checkpoint.head['edgeq']))}.",
        "",
        *facts_table(checkpoint, facts),
        *quality_lines(checkpoint, described.name),
        "## Run it",
        "",
        *running_lines(described, folder, path, checkpoint.record),
        *notes_lines([*checkpoint.record.notes, *notes]),
        *terms_lines(checkpoint, kind),
    ]
    return "\n".join(lines).encode()


def front_matter(checkpoint: Checkpoint, library: str, tags: Sequence[str]) -> Iterator[str]:
    """Make the lines of YAML at the beginning of a card, as the hub reads them."""
    origin = checkpoint.record.origin
    bases = [origin.repository] if origin.repository else list(origin.base_models)
    pairs: dict[str, Any] = {
        "base_model": bases[0] if len(bases) == 1 else bases,
        "base_model_relation": "quantized" if origin.repository else None,
        "license": origin.license,
        "license_name": origin.license_name,
        "license_link": origin.license_link,
        "language": list(origin.languages),
        "library_name": library,
        "pipeline_tag": "text-generation",
        "quantized_by": "edgeq",
        "tags": list(dict.fromkeys(tags)),
    }
    yield "---"
    for key, value in pairs.items():
        if value:
            yield f"{key}: {json.dumps(value, ensure_ascii=False)}"  # YAML reads JSON
    yield "---"


def facts_table(checkpoint: Checkpoint, facts: Mapping[str, str]) -> Iterator[str]:
    """Lay out what the model is and what made it."""
    origin, name = checkpoint.record.origin, plain(checkpoint.record.name)
    known = origin.repository
    rows = {
        "base model": f"[{known}]({HUB}{known})" if known else name,
        **({"made from": ", ".join(origin.base_models)} if origin.base_models else {}),
        **facts,
        "solved on": "; ".join(grid_counts(checkpoint)),
        "recipe": recipe_words(checkpoint.head),
        "licence": licence_words(checkpoint),
    }
    yield from ("| | |", "| --- | --- |")
    for label, text in rows.items():
        yield f"| {label} | {text.replace('|', chr(92) + '|')} |"
    yield ""


def grid_counts(checkpoint: Checkpoint) -> Iterator[str]:
    """Count linear layers, and the matrices beside them, on each grid."""
    decoder = checkpoint.record.decoder
    linear = {layer.tensor for layer in decoder.linears()}
    counts: dict[str, Counter[str]] = {"layers": Counter(), "embedding and head": Counter()}
    for name, (shape, grid) in checkpoint.grids().items():
        if len(shape) > 1:
            part = "layers" if name in linear else "embedding and head"
            counts[part]["dense" if grid is None else describe_grid(grid)] += 1
    for part, of_part in counts.items():
        for called, count in of_part.items():
            yield f"{count} layers {called}" if part == "layers" else f"{part} {called}"


def recipe_words(head: Mapping[str, Any]) -> str:
    """Write the recipe of a run in short: solver, and the text it was calibrated on."""
    recipe, words = head["recipe"], []
    if isinstance(recipe.get("solver"), str):
        words.append(plain(recipe["solver"]))
    strength = recipe.get("propagation_strength")
    if strength:
        words.append(f"error propagation {plain(str(strength))}")
    if head.get("calibration") is not None:
        texts = head["calibration"]["texts"]
        names = ", ".join(plain(PurePath(text["name"]).name) for text in texts)
        samples = sum(text["samples"] for text in texts)
        words.append(f"{samples} samples of text ({names})")
    if head.get("imatrix") is not None:
        words.append(f"importance matrix {plain(PurePath(head['imatrix']['name']).name)}")
    if head.get(TUNED_KEY) is not None:
        words.append(tuned_line(head[TUNED_KEY]))
    return "; ".join(words) or "plain rounding"


def card_size(size: int) -> str:
    """Write bytes with two digits behind the point."""
    return f"{size / 10**9:.2f} GB" if size >= 10**9 else show_megabytes(size)


def kind_of(checkpoint: Checkpoint) -> str:
    """Say in a word what a checkpoint was made as: Q4_K_M, 4bit, or 3.8bpw where layers differ."""
    if checkpoint.type_asked is not None:
        return checkpoint.type_asked
    linear = {layer.tensor for layer in checkpoint.record.decoder.linears()}
    grids = checkpoint.grids()
    bits = {grid.bits for name, (_, grid) in grids.items() if grid and name in linear}
    if len(bits) == 1:
        return f"{bits.pop()}bit"
    weights = sum(math.prod(shape) for shape, _ in grids.values())
    return f"{8 * checkpoint.stored_bytes() / weights:.2f}bpw"


def quality_lines(checkpoint: Checkpoint, place: str = "") -> Iterator[str]:
    """Say what was measured against the original, and of which files, or how to measure it.

    place names the format of the export that the card is of; it is empty for the checkpoint.
    """
    quality = measured_quality(checkpoint)
    yield from ("## Quality", "")
    if quality is None or not isinstance(quality.get("kl"), int | float):
        yield from unmeasured_lines(checkpoint)
        return
    intervals = quality.get("intervals") or {}
    low_high = intervals.get("kl")
    within = f" (95 %: {low_high[0]:.4g} to {low_high[1]:.4g})" if low_high else ""
    yield f"Against the original, {measured_on(quality, place)}:"
    yield ""
    yield f"- KL divergence {quality['kl']:.4g} nats per token{within}; 0 is equal"
    if isinstance(quality.get("top1_agreement"), int | float):
        yield f"- the same top token {quality['top1_agreement']:.1%} of the time"
    both = [quality.get(name) for name in ("perplexity", "reference_perplexity")]
    if all(isinstance(each, int | float) for each in both):  # infinity is stored as null
        yield (
            f"- perplexity {quality['perplexity']:.4g}, "
            f"{quality['reference_perplexity']:.4g} of the original"
        )
    if quality.get("tokens") is not None:
        yield f"- measured on {quality['tokens']} tokens"
    yield ""


def unmeasured_lines(checkpoint: Checkpoint) -> Iterator[str]:
    """Say how quality is measured, against the base model by its name on the hub if it has one."""
    known = checkpoint.record.origin.repository
    command = shell_line(["edgeq", "evaluate", ".", "--reference", known or "MODEL"])
    named = "" if known else "; MODEL is the directory of the original, or its name on the hub"
    yield f"Not measured. `{command}` compares it with the original{named}."
    yield ""


def measured_on(quality: Mapping[str, Any], place: str) -> str:
    """Say which files were measured, and in what; with that they are not those of this card."""
    runtime = plain(str(quality.get("runtime")))
    target = str(quality.get("target") or "")
    if not target:
        return f"measured in {runtime}"
    folder = PurePath(target).parts[0] if PurePath(target).parts else ""
    if folder == place:
        files = "these files"
    elif not folder:
        files = "the checkpoint of edgeq that these files were written from"
    elif folder in {each.name for each in all_formats()}:
        files = f"the {folder} export of the same checkpoint" + (", not these files" * bool(place))
    else:
        files = plain(folder)
    return f"measured on {files}, in {runtime}"


def talk_words(record: ModelRecord, path: str) -> list[str]:
    """Give the words that let a model write: a chat, or a text to continue without a template."""
    if record.template is None:
        return ["generate", path, "The capital of France is"]
    return ["chat", path]


def running_lines(described: Format, folder: Path, path: str, record: ModelRecord) -> Iterator[str]:
    """Show how to run the files in each app, from inside of their directory."""
    stem = Path(path).stem if described.suffix == ".gguf" else record.name
    values = {"path": path, "folder": ".", "name": safe_name(stem).lower()}
    context = min(record.decoder.whole_context or SHORT_CONTEXT, SHORT_CONTEXT)
    if described.runtime:
        yield from code("console", [shell_line(["edgeq", *talk_words(record, path)])])
    for app in apps_for(described.run_with, [each.name for each in folder.iterdir()]):
        yield f"**{app.label}**{f' ({app.install})' if app.install else ''}"
        yield ""
        yield from app_code(app, values, context)
        if app.note:
            yield from (app.note, "")


def app_code(app: App, values: Mapping[str, str], context: int) -> Iterator[str]:
    """Show what is typed or run in an app."""
    if app.commands:
        yield from code("console", map(shell_line, app.lines(**values)))
    if app.script:
        script = filled(app.script, **values, context=str(context))
        yield from code(app.language, script.rstrip().split("\n"))


def code(language: str, lines: Iterable[str]) -> Iterator[str]:
    """Put lines into a block of code."""
    yield f"```{CODE.get(language, language)}"
    yield from lines
    yield from ("```", "")


def notes_lines(notes: Sequence[str]) -> Iterator[str]:
    """List what is not as in the base model."""
    if notes:
        yield from ("## Notes", "", *(f"- {plain(note)}" for note in dict.fromkeys(notes)), "")


def terms_lines(checkpoint: Checkpoint, kind: str) -> Iterator[str]:
    """Say under which terms the model is given, and how to upload it under a name of its own."""
    files = sorted(filter(LEGAL_FILE.fullmatch, checkpoint.companions()))
    yield from ("## Licence", "", f"Licence: {licence_words(checkpoint)}.")
    if files:
        yield f"The base model's terms lie beside this card: {', '.join(files)}."
    elif checkpoint.record.origin.license is None:
        yield "Look at the base model's page before you give it to others."
    name = f"{safe_name(checkpoint.record.name)}-{safe_name(kind)}"
    yield from ("", "## Upload", "", *code("console", [f"hf upload OWNER/{name} ."]))


def licence_words(checkpoint: Checkpoint) -> str:
    """Name the licence as the base model states it."""
    origin = checkpoint.record.origin
    if origin.license is None:
        return UNKNOWN_LICENSE
    more = [plain(text) for text in (origin.license_name, origin.license_link) if text]
    return f"{origin.license} ({', '.join(more)})" if more else origin.license


def plain(text: str) -> str:
    """Write somebody else's text so that it is text in Markdown too, on one line."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(shown.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")
