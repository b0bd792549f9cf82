"""Lines of mixed text, the same in every run: what tokenizers of different libraries differ on.

Code, emoji, scripts of the world, runs of blanks, digits, combining marks, special tokens in text.
"""

# ruff: noqa: RUF001

import functools
import random
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "edgeq" / "data" / "calibration.txt"
ALL_LINES = 2000

WORDS = """the quick brown fox jumps over a lazy dog and models tokens weights layer of language
don't I'll we've THEY'RE it'S he'd o'clock 'tis YOU'VE She'Ll camelCase HTTPServer snake_case
naïve café Ångström Zürich ÉCOLE École straße STRASSE Übermut señor İstanbul ΑΘΗΝΑ Αθήνα ζώο НАТО
Москва Привет мир ГОСТ łódź Đặng ĐẶNG ǅ ǈ ﬁ ß ſ Ⅷ ª º ˈaɪ ʰ""".split()
SCRIPTS = [
    "你好，世界。今天天气很好！",
    "日本語 と ひらがな と カタカナ・ー",
    "東京2020オリンピック",
    "한국어 단어 가나다",
    "العربية لغة جميلة، أليس كذلك؟ ٣٤٥",
    "שלום עולם",
    "हिन्दी भाषा १२३",
    "ภาษาไทย ๔๕",
    "தமிழ் বাংলা",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ հայերեն ՀԱՅ",
    "ᏣᎳᎩ Ꭰ",
    "𝒜𝒷𝒸 𝟙𝟚𝟛 𐐀𐐨 𠀀𠀁",
]
MARKS = [
    "e\u0301cole",
    "a\u0308\u0323b",
    "n\u0303",
    "Z\u0351a\u0316l\u0363g\u0489o",
    "\u0301alone",
    "क\u093cा",
    "\u212bngstr\u00f6m",
    "\ufb01 \u2126",
]
SIGNS = [
    "😀😃 family 👩‍👩‍👧 flag 🇩🇪 ❤️",
    "👍🏽👨‍💻✨",
    "!!! ... ??? -- ——(()) [[x]] {y}; $a+=b<c>^~|`",
    "http://example.org/a?b=c&d=%20#e",
    "«»“”‘’…•§¶†‡",
    "€£¥₹ ±×÷≤≥≠∞√∑ →⇒",
    "&amp; <b>x</b> <0x41> <|x|> [y] #tag @name",
    "//----/**/\n///",
    "a/b\n/c",
]
NUMBERS = ["0", "12", "345", "6789", "1234567890", "3.14159", "1,000,000", "2nd-3rd", "x86_64"]
NUMBERS += ["½", "²³", "٣٤", "५६७", "1e-05", "0xFF", "12:34:56"]
CODE = [
    "def f(x):\n    return x ** 2  # why?\n\n\nclass A:\n\tpass",
    'for(int i=0;i<10;++i){\n  printf("%d\\n", i);\n}',
    "    if a != b and not c:\n        raise ValueError(f'{a}')",
    "SELECT * FROM t WHERE x='it''s' -- no",
    '{"key": [1, 2.5, null], "k2": "v\\u00e9"}',
    "\t\tlet s = `${a}`;\r\n\r\n",
    '<!DOCTYPE html>\n<p class="x">\n  Hi</p>',
]
BLANKS = [" ", "  ", "   ", " " * 4, " " * 7, " " * 16, " " * 41, "\n", "\n\n", "\n \n", " \n"]
BLANKS += ["\t", "\t\t", "\r\n", "\r", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028", "\u0085"]
RUNS = ["a" * 9, "=" * 33, "hahahahaha", "ooooo", "-" * 12, "ababababa", "\u2581", "\u2581\u2581x"]
CATEGORIES = (WORDS, WORDS, WORDS, SCRIPTS, MARKS, SIGNS, NUMBERS, CODE, BLANKS, RUNS)
JOINS = (" ", " ", " ", " ", "", "", "  ", "\n", ". ", ", ")


@functools.cache
def shipped_lines() -> tuple[str, ...]:
    """The text that ships with edgeq, in pieces of at most 200 characters."""
    text = SHIPPED.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    return tuple(line[at : at + 200] for line in lines for at in range(0, len(line), 200))


@functools.cache
def mixed_lines(count: int = ALL_LINES, special: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Make lines of mixed text; one in ten has one of the special tokens in it."""
    draw = random.Random(14)
    lines = ["", " ", "  ", "\n", " a", "a ", "  a b  "]
    while len(lines) < count:
        if draw.random() < 0.15:
            lines.append(draw.choice(shipped_lines()))
            continue
        pieces = []
        for _ in range(draw.randint(1, 7)):
            pieces += [draw.choice(draw.choice(CATEGORIES)), draw.choice(JOINS)]
        if special and draw.random() < 0.1:
            pieces.insert(draw.randrange(len(pieces)), draw.choice(special))
        lines.append("".join(pieces[: draw.choice((None, -1))]))
    return tuple(lines[:count])
