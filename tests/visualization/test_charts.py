"""Charts: files are written, and labels are readable: they neither overlap nor are cut off."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_avfusion.visualization import charts

LONG = [f"a rather long name of a class, number {number}, with a comma and a $ sign $" for number in range(40)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, with their layout, that the functions save."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        save(figure, *arguments, **options)
        FigureCanvasAgg(figure).draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def readable(figure):
    """Tick labels, axis labels and headings lie in the figure and do not overlap."""
    renderer = figure.canvas.get_renderer()
    texts = [figure._suptitle] if figure._suptitle is not None else []
    for axis in figure.axes:
        texts += [axis.xaxis.label, axis.yaxis.label, axis._left_title]
        for kind in (axis.xaxis, axis.yaxis):
            low, high = sorted(kind.get_view_interval())
            texts += [t.label1 for t in kind.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    for name, box in boxes:
        inside = min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1
        assert inside, f"{name!r} is cut off"
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9)), f"{first!r} lies on {second!r}"
    return [name for name, _ in boxes]


@pytest.mark.parametrize("number", [1, 4, 40])
@pytest.mark.parametrize("series", [1, 3])
def test_bars(tmp_path, drawn, number, series):
    names = LONG[:number]
    values = {f"series {n}": [(10.0 * n + index, 1.5 if n else None) for index in range(number)] for n in range(series)}
    values["series 0"][0] = (None, None)  # unknown
    charts.draw_bars(tmp_path / "a.png", names, values, "value (%)", title="A heading that is long " * 8)
    (figure,) = drawn
    texts = readable(figure)
    assert "value (%)" in texts
    assert sum("a rather long name" in text for text in texts) == number
    (axis,) = figure.axes
    assert len(axis.patches) == number * series - 1
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first name is at the top
    assert bool(figure.legends) == (series > 1)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_ranked_bars(tmp_path, drawn):
    panels = {
        "over audio": [(name, 20.0 - index) for index, name in enumerate(LONG)],
        "over video": [("a", 0.0), ("b", 0.0)],
    }
    charts.draw_ranked_bars(tmp_path / "a.png", panels, "gain (points)", title="Gains")
    (figure,) = drawn
    readable(figure)
    first, second = figure.axes
    colours = [bar.get_facecolor() for bar in first.patches]
    assert len(set(colours)) == 2
    assert colours.count(colours[0]) == 21
    assert [text.get_text() for text in first.texts][:2] == ["+20.0", "+19.0"]
    assert [text.get_text() for text in first.texts][-1] == "-19.0"
    assert second.get_xlim()[0] < second.get_xlim()[1]


@pytest.mark.parametrize("deviation", [None, 3.0])
def test_lines(tmp_path, drawn, deviation):
    series = {"both": [(2, 40.0, deviation), (4, 45.0, deviation), (8, 44.0, deviation)], "one": [(2, 1.0, deviation)]}
    charts.draw_lines(tmp_path / "a.png", series, "span (s)", "mAP (%)", title="Spans", ticks={8: "8\n(as trained)"})
    (figure,) = drawn
    texts = readable(figure)
    assert {"span (s)", "mAP (%)", "2", "4", "8\n(as trained)"} <= set(texts)
    (axis,) = figure.axes
    assert axis.get_ylim()[0] >= 0 or deviation is None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "one"]


def test_tick_labels_of_a_line_chart_do_not_overlap(tmp_path, drawn):
    spans = (0.1, 0.2, 0.5, 1.0, 8.0)
    charts.draw_lines(tmp_path / "a.png", {"both": [(span, 40.0, None) for span in spans]}, "span (s)", "mAP (%)")
    (figure,) = drawn
    assert {"span (s), not to scale", "0.1", "0.2", "0.5", "1", "8"} <= set(readable(figure))
    (axis,) = figure.axes
    assert axis.get_xticks().tolist() == [0, 1, 2, 3, 4]
    assert axis.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]


def test_columns(tmp_path, drawn):
    series = {"both": {"synchronous": (40.0, 1.0), "asynchronous": (41.0, None)}, "one": {"synchronous": (3.0, None)}}
    names = ["synchronous", "asynchronous"]
    charts.draw_columns(tmp_path / "a.png", names, series, "windows", "mAP (%)", title="Windows")
    (figure,) = drawn
    assert {"windows", "mAP (%)", *names} <= set(readable(figure))
    (axis,) = figure.axes
    assert sorted(bar.get_height() for bar in axis.patches) == [3.0, 40.0, 41.0]
    assert sorted(text.get_text() for text in axis.texts) == ["3.0", "40.0", "41.0"]


def test_empty_charts_are_refused(tmp_path):
    path = tmp_path / "a.png"
    for call, message in (
        (lambda: charts.draw_bars(path, [], {}, "x"), "at least one group"),
        (lambda: charts.draw_bars(path, ["a"], {"s": []}, "x"), "'s' holds 0 values for 1 groups"),
        (lambda: charts.draw_ranked_bars(path, {}, "x"), "no panels"),
        (lambda: charts.draw_lines(path, {"s": []}, "x", "y"), "at least one point"),
        (lambda: charts.draw_columns(path, ["a"], {}, "x", "y"), "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not path.exists()
