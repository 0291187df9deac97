"""One pass without pixels: caption and select, made from what earlier stages found. No model is needed.

Reads: scores, tags, sidecar columns, text, errors and skips of earlier stages. Writes: caption's and select's columns.

Kind: wiring.
"""

import time
from dataclasses import dataclass
from typing import Any

from sote.cluster import logs
from sote.cluster.storage import RunFolder
from sote.data import caption, selection, shards
from sote.data.caption_profile import Profile
from sote.data.recipe import CurateRecipe, SelectPart, SourceKind
from sote.data.shards import Row, Work

STAGES = ("caption", "select")
CAPTION_COLUMNS = ("aesthetic_score", "quality_score", "rating", "tags", "year", "text", "source")
SIDECAR_COLUMNS = ("artist", "title", "short_title", "characters", "series")
ERRORS = ("index_error", "decode_error", "score_error", "tag_error", "text_error")
SKIPS = ("index_skip", "decode_skip", "duplicates_skip")


def run(work: Work) -> None:
    """Bring caption and select up to date for every shard that lacks one of them."""
    pending = sorted({shard for stage in STAGES for shard in work.pending(stage)})
    if not pending:
        return
    derive = Derive(work.folder, work.recipe)
    with logs.progress("caption, select", sum(work.rows_in(shard) for shard in pending)) as advance:
        for piece in shards.stream(shards.each(pending).map_batches(derive, batch_size=1)):
            shard = int(piece["shard"])
            for stage in STAGES:
                work.commit(stage, shard, shards.from_bytes(piece[stage]), seconds=float(piece["seconds"]) / 2)
            advance(work.rows_in(shard))


@dataclass(frozen=True)
class Derive:
    """Captions and selects the rows of one shard, as a Ray Data function."""

    folder: RunFolder
    recipe: CurateRecipe

    def __call__(self, batch: Any) -> dict[str, Any]:
        started, shard = time.monotonic(), int(batch["shard"][0])
        rows = shards.read_rows(self.folder, shard, ("row", *CAPTION_COLUMNS, *SIDECAR_COLUMNS, *ERRORS, *SKIPS))
        profile = caption.load_profile(self.recipe.caption.profile)
        sources = {source.name: source for source in self.recipe.sources}
        for row in rows:
            source = sources[row["source"]]
            row |= {"title": row["title"] or source.title, "short_title": row["short_title"] or source.short_title}
            if row["tags"] is not None:
                row |= self._captioned(row, source.kind, profile)
            row |= selected(row, self.recipe.select)
        tables = {stage: shards.to_bytes(shards.table_of(stage, rows)) for stage in STAGES}
        return shards.batch_of({"shard": shard, "seconds": time.monotonic() - started} | tables)

    def _captioned(self, row: Row, kind: SourceKind, profile: Profile) -> Row:
        facts = caption.CaptionFacts(
            aesthetic_score=row["aesthetic_score"],
            quality_score=row["quality_score"],
            rating=tuple(row["rating"].values()) if row["rating"] else None,
            tags=tuple((tag["name"], tag["probability"], tag["category"]) for tag in row["tags"]),
            year=row["year"],
            source_kind=kind,
            artist=row["artist"],
            title=row["title"],
            short_title=row["short_title"],
            characters=tuple(row["characters"] or ()),
            series=tuple(row["series"] or ()),
            text=row["text"],
        )
        made = caption.caption(facts, profile, part=self.recipe.caption)
        return {"caption": made.text, "caption_tags": list(made.tags), "words": made.words}


def selected(row: Row, part: SelectPart) -> Row:
    """select's columns of one row. The reasons of earlier stages stay where they are."""
    facts = selection.SelectFacts(
        errors=[row[name] for name in ERRORS],
        skips=[row[name] for name in SKIPS],
        caption_tags=row.get("caption_tags") or (),
        aesthetic_score=row["aesthetic_score"],
        quality_score=row["quality_score"],
    )
    chosen = selection.select(facts, part)
    reason = chosen.skip_reason
    return {"select_repeat": chosen.repeat, "select_skip": reason if reason not in facts.skips else None}
