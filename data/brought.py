"""Pictures of an object store for the decoder: read here, several at a time, and handed on as files of this machine.

The decoder's process is forked, may be killed at any moment and counts its seconds: no place to try a network again.
A store that stays away ends the run; what is not there is the row's own error, as that of a local file.

Kind: pure, but for reading files.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from sote.cluster import store
from sote.data import decode
from sote.data.decoder import Decoder
from sote.data.decoder_process import Arrays
from sote.data.recipe import DecodePart

AT_ONCE: Final = 8  # files that are read

Row = dict[str, Any]


def decoded(decoder: Decoder, rows: list[Row], *, rule: DecodePart) -> tuple[list[Row], Arrays]:
    """What `Decoder.slice` gives, for rows wherever they lie. Raises Unreachable."""
    afar = [at for at, row in enumerate(rows) if is_afar(row["uri"])]
    if not afar:
        return decoder.slice(rows)
    with tempfile.TemporaryDirectory(prefix="sote-brought-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        files = {at: Path(folder) / str(at) for at in afar}
        ends = dict(zip(afar, pool.map(lambda at: _bring(rows[at], files[at], rule), afar), strict=True))
        near = [row | _place(files[at]) if at in files else row for at, row in enumerate(rows)]
        found, arrays = decoder.slice(near)
    return [row | ends.get(at, {}) for at, row in enumerate(found)], arrays


def is_afar(uri: str) -> bool:
    """Whether a row's file lies in an object store, itself or in a tar or Parquet file."""
    place = uri.rpartition("::")[2]
    return place.partition("://")[0].lower() in store.OBJECTS and "://" in place


def _bring(row: Row, file: Path, rule: DecodePart) -> Row:
    """Write the bytes of a row into `file`; of one that is not to be decoded, its columns."""
    data, found = decode.read_row(row, rule=rule)
    if data is None:
        return found
    file.write_bytes(data)
    return {}


def _place(file: Path) -> Row:
    """The file instead of the row's own; one that is not there ends there, and its columns are known."""
    return {"uri": str(file), "offset": None, "bytes": None}
