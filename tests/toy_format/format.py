"""What a toy file holds: any grid, as NumPy arrays in a zip file."""

from edgeq.format_parts import App, Format, FormatOption, GroupSizes

FORMAT = Format(
    name="toy",
    exporter="toy_format.exporter:ToyExporter",
    reader="toy_format.reader:ToyReader",
    bits=(8,),
    widens=True,
    groups=GroupSizes(multiple_of=1),
    zero_kinds=("symmetric", "offset", "integer"),
    scale_dtypes=("float16", "bfloat16", "float32"),
    options=(
        FormatOption("deflate", "compress the arrays."),
        FormatOption("numbers", "how offsets are written.", ("plain", "negated")),
        FormatOption("copies", "how often codes are stored.  [default: 1]", range(1, 4)),
    ),
    suffix=".toy",
    read_by="these tests",
    verified_by="nobody",
    run_with=(App("toys", (("toy-runner", "--file", "{path}"),)),),
)
