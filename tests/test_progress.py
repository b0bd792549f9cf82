"""What people see while work goes on, at several widths and with a clock that the test turns."""

import io
import re

import pytest
from rich.console import Console

from edgeq.commands.progress import Bar, Lines, following, status_line
from edgeq.commands.work import Work, layer_in_block
from edgeq.run.observing import LOADING, SOLVING
from edgeq.solving.report import LayerReport, Stage

WIDTHS = (30, 40, 60, 80, 200)
LAYER = LayerReport(
    "model.layers.7.mlp.down_proj", (4, 4), 4, 32, {Stage.NEAREST: 0.2, Stage.SOLVED: 0.1}
)


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def drawn(work, width):
    """The one line that a terminal of so many columns shows."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(status_line(work, width))
    line, end = file.getvalue().split("\n")
    assert end == "" and len(line) <= width
    return line


def resumed(clock):
    """A run of 30 blocks of which 7 were there, in its second block of 100 seconds."""
    work = Work(clock)
    work.begin(30, 7)
    work.goes_on(LOADING, 0, 0)
    clock.now += 50
    work.goes_on(SOLVING, 7, 30)
    clock.now += 100
    work.finish_block(7)
    clock.now += 40
    work.detail = ["mlp.down_proj", "1.2 GB in use", "layer error 50% of plain rounding"]
    return work


@pytest.mark.parametrize("width", WIDTHS)
def test_count_and_time_left_stay_in_every_terminal(clock, width):
    line = drawn(resumed(clock), width)
    assert line.startswith("block 8/30 ")
    assert "about 36 min left" in line  # 22 blocks of 100 s, less the 40 of this one
    assert ("━" in line) == (width >= 40)


@pytest.mark.parametrize(
    ("width", "shown"),
    [(60, ["mlp.down_proj"]), (80, ["mlp.down_proj", "1.2 GB in use"]), (200, ["50% of plain"])],
)
def test_details_give_way_in_narrow_terminals(clock, width, shown):
    line = drawn(resumed(clock), width)
    assert all(part in line for part in shown)
    assert ("50% of plain" in line) == (width == 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_said_to_be_left_before_anything_is_done(clock, width):
    work = Work(clock)
    work.begin(30, 0)
    work.goes_on(SOLVING, 0, 30)
    clock.now += 5
    line = drawn(work, width)
    assert "left" not in line and "estimating, 5 s so far" in line
    assert "?" not in line


def test_a_continued_run_says_so_from_the_start(clock):
    work = Work(clock)
    work.begin(30, 7)
    work.goes_on(LOADING, 0, 0)
    clock.now += 3
    assert drawn(work, 80).startswith("block 7/30, loading the model")
    assert "3 s so far" in drawn(work, 80)
    work.goes_on(SOLVING, 7, 30)
    assert drawn(work, 80).startswith("block 7/30  ")


@pytest.mark.parametrize("what", ["measuring quality, window", "measuring types, block"])
def test_other_work_has_its_own_count_and_clock(clock, what):
    work = resumed(clock)
    work.goes_on(what, 0, 16)
    clock.now += 10
    work.goes_on(what, 4, 16)
    for width in (60, 80, 200):
        assert drawn(work, width).startswith(f"{what} 4/16  ")
        assert "about 30 s left" in drawn(work, width)
    assert "down_proj" not in drawn(work, 200)


def lines_of(clock, patience, play):
    file = io.StringIO()
    with Lines(Console(file=file, width=80), clock, patience=patience) as lines:
        play(lines)
    return file.getvalue().splitlines()


def test_lines_name_what_takes_long_once_and_the_time_left(clock):
    def play(lines):
        lines.begin(4, 1)
        lines.progressed(LOADING)
        lines.progressed(SOLVING, 1, 4)
        clock.now += 60
        lines.solved(LAYER)
        lines.finished_block(1)
        for done in range(101):
            lines.progressed("measuring quality, window", done, 100)
            clock.now += 1

    shown = lines_of(clock, 0, play)
    assert shown[0] == "block 1/4, loading the model"
    assert shown[1] == "1 of 4 blocks are there"
    assert re.match(r"block 2/4, about 2 min left, layer error 50% of plain rounding, ", shown[2])
    rest = [line.partition(",")[2].split(",")[0] for line in shown[3:]]
    assert rest == [f" window {done}/100" for done in range(0, 101, 10)]
    assert "about 50 s left" in shown[8]


def test_quick_work_is_not_named_in_lines(clock):
    def play(lines):
        lines.begin(4, 0)
        lines.progressed(LOADING)
        lines.progressed(SOLVING, 0, 4)
        lines.finished_block(0)

    assert len(lines_of(clock, 1000, play)) == 1


@pytest.mark.parametrize(
    ("is_terminal", "plain", "kind"),
    [(True, False, Bar), (True, True, Lines), (False, False, Lines)],
)
def test_a_terminal_gets_the_bar_and_a_pipe_gets_lines(is_terminal, plain, kind):
    file = io.StringIO()
    with following(Console(file=file, width=80, force_terminal=is_terminal), plain=plain) as shown:
        assert isinstance(shown, kind)
        shown.begin(2, 0)
        shown.progressed(SOLVING, 0, 2)
        shown.solved(LAYER)
        shown.finished_block(0)
    assert "block 1/2" in file.getvalue()


def test_a_layer_is_named_by_what_stands_behind_its_block():
    assert layer_in_block("model.layers.7.mlp.down_proj", 30) == "mlp.down_proj"
    assert layer_in_block("transformer.h.0.mlp.experts.3.w1", 2) == "mlp.experts.3.w1"
    assert layer_in_block("odd\x1bname", 2) == "odd\\x1bname"
