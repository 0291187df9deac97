"""`sote curate`: the stages in their order, run over shards, resumable at any moment.

STAGES is the way of the data. Neighbours with the same `run` are one pass over the pictures. Running the same command
again does what is not yet committed, and nothing else.

Kind: wiring.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sote.cluster import recipe, remote, session, storage
from sote.cluster.errors import RunFailed, SourceError
from sote.cluster.storage import RunFolder
from sote.data import (
    catalogue,
    decode,
    index,
    needs,
    pass_captions,
    pass_duplicates,
    pass_latents,
    pass_pixels,
    pass_text,
)
from sote.data.caption_profile import load_profile
from sote.data.catalogue import Count
from sote.data.recipe import CurateRecipe
from sote.data.shards import Work


@dataclass(frozen=True)
class Stage:
    """One stage: the recipe tables that its rows depend on, the stage that it follows from, the pass that makes them.

    A stage follows from the one before it unless `after` names another.
    """

    name: str
    parts: tuple[str, ...]
    run: Callable[[Work], None]
    after: str | None = None


def run(work_recipe: CurateRecipe, folder: RunFolder, *, address: str | None, redo_from: str | None = None) -> Count:
    """Curate: run every stage that is not committed, then write the catalogue. Returns how the files ended.

    `redo_from` names a stage that is done again, with all that follow. Raises SourceError (not one readable picture)
    and RunFailed (more files failed than `work.max_failed_share`); committed shards stay in either case.
    """
    work = Work(work_recipe, folder, digests(work_recipe))
    if redo_from is not None:
        forget(work, redo_from)
    passes = [list(group) for _, group in itertools.groupby(STAGES, key=lambda stage: stage.run)]
    for stage in passes[0]:
        stage.run(work)
    _probe(work)
    if any(work.pending(stage.name) for stage in STAGES[1:]):
        with session.connect(address):
            needs.require(work, address=address)
            for group in passes[1:]:
                if any(work.pending(stage.name) for stage in group):
                    group[0].run(work)
                _refuse_too_many_failures(work, [stage.name for stage in group])
    return catalogue.write(work)


def digests(work_recipe: CurateRecipe) -> dict[str, str]:
    """For each stage the digest of the recipe parts that it and all stages before it depend on."""
    dumped = work_recipe.model_dump(mode="json")
    # a profile is a file that its owner may edit: its content counts, not its name
    dumped["caption"] |= {"profile": recipe.digest(load_profile(work_recipe.caption.profile))}
    found: dict[str, str] = {}
    for stage in STAGES:
        before = [found[name] for name in _above(stage)[:1]]
        found[stage.name] = recipe.digest_of([before, {part: dumped[part] for part in stage.parts}])
    return found


def may_differ(redo_from: str | None) -> set[str]:
    """The recipe tables that may differ from the run's: `work`, and those of the stages that are done again."""
    redone = _redone(redo_from)
    free, fixed = (
        {part for stage in STAGES if (stage in redone) == again for part in stage.parts} for again in (True, False)
    )
    return {"work"} | (free - fixed)


def forget(work: Work, redo_from: str) -> None:
    """Take back the commit markers of a stage and of all that follow from it."""
    folders = [work.folder.root / "rows" / stage.name for stage in _redone(redo_from)]
    markers = [marker for folder in folders for marker in remote.known_tree(folder, "*.done")]
    if redo_from == "index":
        markers.append(storage.marker(work.index_marker))
    remote.remove(*markers)


def _redone(redo_from: str | None) -> list[Stage]:
    """The stage that is done again, and those that follow from it."""
    return [stage for stage in STAGES if redo_from in (stage.name, *_above(stage))]


def _above(stage: Stage) -> list[str]:
    """The stages that a stage follows from, the nearest first."""
    names = [each.name for each in STAGES]
    at = names.index(stage.name)
    nearest = names.index(stage.after) if stage.after else at - 1
    return [names[nearest], *_above(STAGES[nearest])] if nearest >= 0 else []


def _index(work: Work) -> None:
    """List the files of all sources. It is one act: until its last shard is written, none counts."""
    if work.shard_count():
        return
    started, count, rows = time.monotonic(), 0, 0
    for table in index.tables(work.recipe.sources, shard_rows=work.recipe.shard_rows):
        work.commit("index", count, table, seconds=time.monotonic() - started)
        count, rows, started = count + 1, rows + table.num_rows, time.monotonic()
    storage.commit(work.index_marker, digest=work.digests["index"], shards=count, rows=rows)


STAGES: tuple[Stage, ...] = (
    Stage("index", ("sources", "shard_rows"), _index),
    Stage("decode", ("decode", "slice_rows"), pass_pixels.run),
    Stage("score", ("score",), pass_pixels.run),
    Stage("tag", ("tag",), pass_pixels.run),
    Stage("duplicates", ("duplicates",), pass_duplicates.run),
    Stage("text", ("text",), pass_text.run),
    Stage("caption", ("caption",), pass_captions.run),
    Stage("select", ("select",), pass_captions.run),
    Stage("latents", ("latents",), pass_latents.run, after="decode"),  # and from the picks: Work.digest
)


def _probe(work: Work) -> None:
    """Find one file that opens as a picture, before any model is loaded."""
    for shard in range(work.shard_count()):
        for row in work.read(shard, ("uri", "offset", "bytes", "index_skip")):
            if row["index_skip"] is None and decode.opens(row):
                return
    places = ", ".join(source.path for source in work.recipe.sources)
    raise SourceError(f"sources: not one readable picture among the {work.row_count()} files in {places}")


def _refuse_too_many_failures(work: Work, stages: list[str]) -> None:
    limit = work.recipe.work.max_failed_share * work.row_count()
    for stage in stages:
        facts = [storage.committed(work.folder.rows(stage, shard)) or {} for shard in range(work.shard_count())]
        failed = sum(int(each.get("failed", 0)) for each in facts)
        if failed > limit:
            reasons = dict(_sum(facts))
            raise RunFailed(
                f"{stage}: {failed} of {work.row_count()} files failed, more than work.max_failed_share allows "
                f"({work.recipe.work.max_failed_share}): {reasons}; mend the files or raise the share, then run again"
            )


def _sum(facts: list[dict[str, object]]) -> Iterator[tuple[str, int]]:
    totals: dict[str, int] = {}
    for each in facts:
        errors = each.get("errors", {})
        if isinstance(errors, dict):
            for reason, number in errors.items():
                totals[reason] = totals.get(reason, 0) + number
    yield from sorted(totals.items(), key=lambda item: -item[1])
