"""Draw the pictures of README and docs as SVG, each in light and in dark.

`scripts/document` writes them into docs/assets. Nothing is drawn by hand, and no font is loaded.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import comparisons
from benchmarks.comparisons import BUDGET, EDGEQ, LLAMA

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MINUS = "\N{MINUS SIGN}"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, monospace"


@dataclass(frozen=True)
class Palette:
    """Name the colours of one mode."""

    ink: str
    soft: str
    line: str
    paper: str
    fill: str
    series: Mapping[str, str]


PALETTES = {
    "light": Palette(
        "#1f2430",
        "#5b6472",
        "#c9d0da",
        "#ffffff",
        "#f3f6fa",
        {LLAMA: "#b45309", EDGEQ: "#1d4ed8", BUDGET: "#0f766e"},
    ),
    "dark": Palette(
        "#e6e9ef",
        "#a3acba",
        "#434b59",
        "#161a22",
        "#222834",
        {LLAMA: "#f59e0b", EDGEQ: "#7aa2ff", BUDGET: "#2dd4bf"},
    ),
}
NAMES = {
    LLAMA: "llama.cpp, importance matrix",
    EDGEQ: "edgeq, the same type",
    BUDGET: "edgeq, --bits-per-weight",
}


def all_pictures() -> Iterator[tuple[str, str]]:
    """Draw every picture: file names with their content."""
    for name, draw in PICTURES.items():
        for mode, palette in PALETTES.items():
            yield f"{name}-{mode}.svg", draw(palette)


def svg(size: tuple[int, int], title: str, palette: Palette, parts: Sequence[str]) -> str:
    """Put parts on a sheet with rounded corners."""
    width, height = size
    sheet = rectangle((0, 0, width, height), palette.paper, palette.line, radius=10)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="{FONT}" font-size="13">'
    )
    return "\n".join([head, f"<title>{escaped(title)}</title>", sheet, *parts, "</svg>", ""])


def escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text(place: tuple[float, float], words: str, colour: str, **attributes: Any) -> str:
    """Write words at a place; attributes are those of SVG, with _ for -."""
    x, y = place
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}"{more}>{escaped(words)}</text>'


def rectangle(
    box: tuple[float, float, float, float], fill: str, stroke: str, *, radius: int = 6
) -> str:
    x, y, width, height = box
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def line(points: Sequence[tuple[float, float]], colour: str, *, width: float = 1) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'


def arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    """Draw a straight arrow, along one axis."""
    (x0, y0), (x1, y1) = start, end
    dx, dy = math.copysign(1, x1 - x0) * (x1 != x0), math.copysign(1, y1 - y0) * (y1 != y0)
    left = (x1 - 7 * dx - 4 * dy, y1 - 7 * dy - 4 * dx)
    right = (x1 - 7 * dx + 4 * dy, y1 - 7 * dy + 4 * dx)
    return line([start, end], colour, width=1.5) + line([left, end, right], colour, width=1.5)


def box(
    place: tuple[float, float, float, float], title: str, words: Sequence[str], palette: Palette
) -> str:
    """Draw a box with a title and lines of smaller words below."""
    x, y, width, _ = place
    middle = {"text_anchor": "middle"}
    parts = [rectangle(place, palette.fill, palette.line)]
    parts.append(text((x + width / 2, y + 20), title, palette.ink, font_weight=600, **middle))
    for number, each in enumerate(words):
        below = (x + width / 2, y + 38 + 16 * number)
        parts.append(text(below, each, palette.soft, font_size=12, **middle))
    return "\n".join(parts)


# --------------------------------------------------------------------------- size against loss


def size_against_loss(palette: Palette) -> str:
    """Draw what each file loses over its size, both tools, on a logarithmic scale of KL."""
    rows = comparisons.of_curve()
    model = comparisons.model_words(rows[0]["model"])
    sheet = (0.0, 0.0, 760.0, 430.0)
    left, top, right, bottom = 70.0, 74.0, 730.0, 372.0
    bits = [row["bits_per_weight"] for row in rows]
    losses = [row["kl"] for row in rows]
    low, high = math.floor(min(bits) * 2) / 2, math.ceil(max(bits) * 2) / 2
    least, most = math.floor(math.log10(min(losses))), math.log10(max(losses) * 1.3)

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        x = left + (row["bits_per_weight"] - low) / (high - low) * (right - left)
        share = (math.log10(row["kl"]) - least) / (most - least)
        return x, bottom - share * (bottom - top)

    parts = [
        text((24, 30), f"What is lost at each size: {model}", palette.ink, font_weight=600),
        text((24, 50), "KL divergence to the original, lower is better", palette.soft),
        text(
            ((left + right) / 2, 414),
            "bits per weight of the file",
            palette.soft,
            text_anchor="middle",
        ),
    ]
    for power in range(least, math.ceil(most)):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if math.log10(value) <= most:
                y = place({"bits_per_weight": low, "kl": value})[1]
                parts.append(line([(left, y), (right, y)], palette.line, width=0.6))
                words = f"{value:.3f}".rstrip("0")
                parts.append(text((left - 8, y + 4), words, palette.soft, text_anchor="end"))
    for step in range(round((high - low) * 2) + 1):
        value = low + step / 2
        x = place({"bits_per_weight": value, "kl": 10.0**least})[0]
        if value == int(value):
            parts.append(text((x, bottom + 20), f"{value:g}", palette.soft, text_anchor="middle"))
    sides = [side for side in NAMES if any(row["side"] == side for row in rows)]
    parts.append(rectangle((440, 66, 284, 14 + 20 * len(sides)), palette.paper, palette.paper))
    for number, side in enumerate(sides):
        parts.extend(curve([row for row in rows if row["side"] == side], side, place, palette))
        y = top + 12 + 20 * number
        parts.append(line([(450, y - 4), (480, y - 4)], palette.series[side], width=2.5))
        parts.append(text((490, y), NAMES[side], palette.ink))
    return svg((int(sheet[2]), int(sheet[3])), "Size against KL divergence", palette, parts)


def curve(
    rows: Sequence[Mapping[str, Any]],
    side: str,
    place: Callable[[Mapping[str, Any]], tuple[float, float]],
    palette: Palette,
) -> Iterator[str]:
    """Draw the files of one side: points, the line below which none of them lies, names."""
    colour = palette.series[side]
    ordered = sorted(rows, key=lambda row: (row["bits_per_weight"], row["kl"]))
    best: list[Mapping[str, Any]] = []
    for row in ordered:
        if not best or row["kl"] < best[-1]["kl"]:
            best.append(row)
    yield line([place(row) for row in best], colour, width=2.5)
    for row in ordered:
        x, y = place(row)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if side == LLAMA:
        taken: list[float] = []
        for row in sorted(ordered, key=lambda row: not row["kind"].endswith(("K_M", "Q2_K"))):
            x, y = place(row)
            if all(abs(x - other) > 50 for other in taken):
                taken.append(x)
                yield text((x + 7, y - 8), row["kind"], palette.soft, font_size=11)


# ------------------------------------------------------------------------------- how it works


def two_streams(palette: Palette) -> str:
    """Draw the two streams of calibration text through three blocks."""
    parts = [
        text((24, 30), "Text flows through each block twice", palette.ink, font_weight=600),
        text((24, 84), "original weights", palette.soft),
        text((24, 184), "weights solved so far", palette.soft),
    ]
    for number in range(3):
        x = 214 + 180 * number
        for y, side, words in ((56, LLAMA, "original"), (156, EDGEQ, "solved")):
            title = f"block {number}"
            parts.append(box((x, y, 110, 50), title, [words], palette))
            colour = palette.series[side]
            if not number:
                parts.append(arrow((x - 36, y + 25), (x - 3, y + 25), colour))
            parts.append(arrow((x + 111, y + 25), (x + 177, y + 25), colour))
        parts.append(arrow((x + 55, 153), (x + 55, 110), palette.soft))
        parts.append(
            text((x + 62, 136), f"X {MINUS} X̂", palette.soft, font_family=MONO, font_size=12)
        )
    closing = (
        "The difference of the two inputs of a layer is the error that it inherits. "
        "Each layer is solved to make up for it."
    )
    parts.append(text((24, 248), closing, palette.soft))
    return svg((760, 272), "Two streams of calibration text", palette, parts)


ROAD = (
    ("weight W", "float32", "of one layer"),
    ("correct", "make up for", "inherited error"),
    ("search scales", "errors weighed", "by the inputs"),
    ("choose codes", "GPTQ, column", "by column"),
    ("sweep", "QuantEase, code", "after code"),
    ("refit scales", "to the error of", "the whole layer"),
)


def road_of_a_layer(palette: Palette) -> str:
    """Draw the steps from a weight to codes, with what they read."""
    parts = [text((24, 30), "The road of one layer", palette.ink, font_weight=600)]
    wide, gap, y = 112, 12, 132
    statistics = f"H = X̂ᵀX̂    D = (X {MINUS} X̂)ᵀX̂"
    parts.append(rectangle((148, 52, 584, 40), palette.fill, palette.line))
    words = f"statistics of the layer's inputs:  {statistics}"
    parts.append(text((440, 77), words, palette.ink, text_anchor="middle"))
    for number, (title, *lines) in enumerate(ROAD):
        x = 24 + (wide + gap) * number
        parts.append(box((x, y, wide, 70), title, lines, palette))
        if number:
            parts.append(arrow((x - gap + 1, y + 35), (x - 2, y + 35), palette.series[EDGEQ]))
            parts.append(arrow((x + wide / 2, 93), (x + wide / 2, y - 3), palette.soft))
    closing = (
        "Scales are rounded to the file's type before codes are chosen: what is solved is what"
    )
    parts.append(text((24, 236), f"{closing} is stored.", palette.soft))
    return svg((780, 260), "The road of one layer", palette, parts)


def one_checkpoint(palette: Palette) -> str:
    """Draw the checkpoint and the formats that are written from it."""
    parts = [text((24, 30), "Solve once, write every format", palette.ink, font_weight=600)]
    parts.append(box((24, 112, 130, 70), "model", ["safetensors,", "GGUF, hub"], palette))
    parts.append(arrow((156, 147), (216, 147), palette.series[EDGEQ]))
    parts.append(text((186, 138), "solve", palette.soft, font_size=11, text_anchor="middle"))
    lines = ["codes, scales, recipe,", "tokenizer, report"]
    parts.append(box((220, 112, 170, 70), "quantized checkpoint", lines, palette))
    runtimes = {
        "GGUF": "llama.cpp, Ollama, LM Studio",
        "ONNX": "ONNX Runtime: desktop, phone, web",
        "MLX": "Macs, iPhones",
        "GPTQ": "transformers, vLLM",
        "compressed-tensors": "vLLM, transformers",
    }
    parts.append(line([(392, 147), (440, 147)], palette.series[EDGEQ], width=1.5))
    parts.append(text((416, 138), "write", palette.soft, font_size=11, text_anchor="middle"))
    parts.append(line([(440, 71), (440, 239)], palette.series[EDGEQ], width=1.5))
    for number, (name, reader) in enumerate(runtimes.items()):
        y = 52 + 42 * number
        parts.append(arrow((440, y + 19), (470, y + 19), palette.series[EDGEQ]))
        parts.append(rectangle((474, y, 262, 36), palette.fill, palette.line))
        parts.append(text((486, y + 16), name, palette.ink, font_weight=600, font_size=12))
        parts.append(text((486, y + 30), reader, palette.soft, font_size=11))
    return svg((760, 280), "One checkpoint, five formats", palette, parts)


PICTURES: Mapping[str, Callable[[Palette], str]] = {
    "size-against-loss": size_against_loss,
    "two-streams": two_streams,
    "road-of-a-layer": road_of_a_layer,
    "one-checkpoint": one_checkpoint,
}
