from raysys.console import html_table, text_table


def test_text_columns_are_aligned_by_their_heading() -> None:
    table = text_table(["name", ">value"], [("a", 1), ("long name", 12.5)])
    assert table.splitlines() == ["name       value", "a              1", "long name   12.5"]


def test_html_cells_are_escaped_and_numbers_are_aligned_right() -> None:
    table = html_table(["name", ">value"], [("<b>", 1)], "a & b")
    assert "<caption>a &amp; b</caption>" in table
    assert '<td>&lt;b&gt;</td><td style="text-align: right">1</td>' in table
    assert '<th>name</th><th style="text-align: right">value</th>' in table
