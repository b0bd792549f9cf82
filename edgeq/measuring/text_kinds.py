"""Name the kinds of text that ship with edgeq; their sources are stated in edgeq/data/README.md.

Options of commands read this module, so nothing heavy is imported.
"""

DEFAULT_KIND = "speech"
ALL_KINDS = "all"
KINDS = {
    DEFAULT_KIND: "evaluation.txt",
    "encyclopedia": "encyclopedia.txt",
    "dialogue": "dialogue.txt",
    "code": "code.txt",
    "german": "german.txt",
    "spanish": "spanish.txt",
}
"""Files in edgeq/data by the kind of their text."""
