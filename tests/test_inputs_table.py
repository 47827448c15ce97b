"""The tables of docs/inputs.md hold what the calls give."""

import inputs_table


def test_the_page_holds_what_the_calls_give():
    assert inputs_table.PAGE.read_text(encoding="utf-8") == inputs_table.page()
