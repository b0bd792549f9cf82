"""What is seen while windows are measured, at the width of a plain terminal and in a log."""

import io

import pytest
from edgeq.commands.measuring_progress import WindowBar, WindowLines, watching_windows
from rich.console import Console


def shown_by(watch, *, terminal):
    """What is printed for nine windows, of which three are done, on 80 columns."""
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, color_system=None)
    watch(console)
    return out.getvalue()


def test_a_bar_of_80_columns_says_how_many_are_done_and_what_is_left():
    def watch(console):
        with WindowBar(console) as bar:
            for done in range(1, 4):
                bar("a model", done, 9)
            bar._bar.refresh()

    last = shown_by(watch, terminal=True).split("measuring, window")[-1]
    assert last.lstrip().startswith("3/9")
    assert "left" in last
    assert len("measuring, window" + last.splitlines()[0].rstrip()) <= 80


def test_lines_of_a_log_say_how_many_are_done():
    def watch(console):
        lines = WindowLines(console, every=0.0)
        for done in range(1, 10):
            lines("a model", done, 9)

    said = shown_by(watch, terminal=False).splitlines()
    assert [line.partition(",")[2].split(",")[0] for line in said] == [
        f" window {done}/9" for done in range(2, 9)
    ]
    assert all(line.endswith(" s left") for line in said)


def test_a_terminal_has_a_bar():
    def watch(console):
        with watching_windows(console, plain=False) as progress:
            assert isinstance(progress, WindowBar)

    assert shown_by(watch, terminal=True) != ""


@pytest.mark.parametrize(("terminal", "plain"), [(True, True), (False, False)])
def test_elsewhere_short_measurements_print_nothing(terminal, plain):
    def watch(console):
        with watching_windows(console, plain=plain) as progress:
            for done in range(10):
                progress("a model", done, 9)

    assert shown_by(watch, terminal=terminal) == ""
