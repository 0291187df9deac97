"""The search box: everything stands in the page, escaped, so that it can be read where scripts are off."""

from sote.cluster import searchbox
from sote.cluster.searchbox import Entry


def test_every_entry_stands_in_the_page_and_the_box_shows_only_where_scripts_run() -> None:
    entries = [Entry("0" * 64, "a.png", "1girl, <script>"), Entry("1" * 64, "b.png", "rain")]
    drawn = searchbox.search_box(entries, what="caption", hint="rain")
    assert drawn.count("<li ") == 2
    assert "1girl, &lt;script&gt;" in drawn
    assert "<script" not in drawn
    assert "<label hidden>" in drawn  # the script shows it
    assert ".hidden = false" in searchbox.SCRIPT
    assert "2 captions</output>" in drawn
    assert f'data-id="{"0" * searchbox.ID_LENGTH}"' in drawn
