from pathlib import Path

import pyarrow as pa

from sote.cluster import storage
from sote.cluster.storage import RunFolder
from sote.data import schema
from sote.data.columns import read_columns


def test_columns_come_from_the_stages_that_write_them_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    storage.write_table(folder.rows("caption", 0), pa.table({"row": [0, 1], "caption": ["a, b", "c"]}))
    storage.write_table(folder.rows("index", 0), pa.table({"row": [0, 1], "uri": ["/a.png", "/b.png"]}))
    table = read_columns(folder, 0, ("caption", "uri"))
    assert table.to_pydict() == {"caption": ["a, b", "c"], "uri": ["/a.png", "/b.png"]}


def test_rows_of_an_earlier_version_have_nothing_in_a_column_that_it_had_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    storage.write_table(folder.rows("caption", 0), pa.table({"row": [0, 1], "caption": ["a, b", "c"]}))
    for columns in (("caption", "caption_groups"), ("caption_groups",)):
        table = read_columns(folder, 0, columns)
        assert table["caption_groups"].to_pylist() == [None, None]
        assert table["caption_groups"].type == schema.BY_NAME["caption_groups"].type
