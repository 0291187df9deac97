"""Near-duplicates: exact pairs, copies and variants, keepers."""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sote.data import decode, dedup, scenes
from sote.data.recipe import DuplicatesPart

PART = DuplicatesPart()


def flipped(hashes: NDArray[np.uint8], rng: np.random.Generator, most: int) -> NDArray[np.uint8]:
    """Each hash with up to `most` bits flipped."""
    bits = np.unpackbits(hashes, axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, most + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def planted(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random hashes, a third of them near-copies of others, in random order."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count - count // 3, 32), dtype=np.uint8)
    copies = flipped(hashes[rng.integers(0, len(hashes), count // 3)], rng, 20)
    return rng.permutation(np.concatenate([hashes, copies]))


def brute_force(hashes: NDArray[np.uint8], radius: int) -> list[list[int]]:
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2, dtype=np.int64)
    return [
        [i, j, int(distance[i, j])]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if distance[i, j] <= radius
    ]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 12, 16])
def test_the_pairs_are_those_of_comparing_all_with_all(radius: int) -> None:
    hashes = planted(400, seed=radius)
    expected = brute_force(hashes, radius)
    assert len(expected) >= 5
    assert dedup.find_pairs(hashes, radius=radius).tolist() == expected


@pytest.mark.parametrize("radius", [0, 3, 6])
def test_the_pairs_are_exact_where_buckets_are_split(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "LARGEST_BUCKET", 8)
    hashes = np.packbits(np.random.default_rng(1).random((200, 256)) < 0.01, axis=1)  # nearly all zeros
    assert dedup.find_pairs(hashes, radius=radius).tolist() == brute_force(hashes, radius)


def test_the_pairs_are_exact_where_work_comes_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "CHUNK", 64)
    hashes = planted(500)
    assert dedup.find_pairs(hashes, radius=8).tolist() == brute_force(hashes, 8)


def test_equal_hashes_pair_with_each_other_and_with_all_near_ones() -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 32), dtype=np.uint8)
    near = one.copy()
    near[0, 5] ^= 3
    assert dedup.find_pairs(np.concatenate([one, near, one, near]), radius=2).tolist() == [
        [0, 1, 2],
        [0, 2, 0],
        [0, 3, 2],
        [1, 2, 2],
        [1, 3, 0],
        [2, 3, 2],
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_or_one_row_has_no_pairs(count: int) -> None:
    assert dedup.find_pairs(np.zeros((count, 32), np.uint8), radius=8).shape == (0, 3)


def test_each_pair_belongs_to_exactly_one_band() -> None:
    hashes = np.unique(planted(300), axis=0)
    bands = [dedup.band_pairs(hashes, band=band, radius=8).tolist() for band in range(9)]
    together = [pair for pairs in bands for pair in pairs]
    assert sum(len(pairs) > 0 for pairs in bands) > 3
    assert sorted(together) == brute_force(hashes, 8)


# copies and variants


@dataclass(frozen=True)
class File:
    """A picture as it lies in a file."""

    image: Image.Image
    name: str
    format: str = "jpeg"
    bytes: int = 1000
    score: float = float("nan")
    date: str | None = None


def candidates(files: list[File]) -> dedup.Candidates:
    return dedup.Candidates(
        id=[file.name for file in files],
        pixel_id=[decode.pixel_id(file.image) for file in files],
        phash=np.stack([np.frombuffer(decode.phash(file.image), np.uint8) for file in files]),
        thumb=np.stack([np.frombuffer(decode.thumb(file.image), np.uint8) for file in files]),
        pixels=np.array([file.image.width * file.image.height for file in files]),
        bytes=np.array([file.bytes for file in files]),
        lossless=np.array([file.format in dedup.LOSSLESS for file in files]),
        score=np.array([file.score for file in files], np.float32),
        date=[file.date for file in files],
    )


def grouped(*files: File) -> dict[str, tuple[int, str, int, str | None]]:
    """For each name: group, name of the keeper, distance, reason."""
    found = dedup.groups(candidates(list(files)), PART)
    keepers = ["" if keeper < 0 else files[keeper].name for keeper in found.keeper]
    columns = zip(files, found.group.tolist(), keepers, found.distance.tolist(), found.reason, strict=True)
    return {file.name: (group, keeper, distance, reason) for file, group, keeper, distance, reason in columns}


def again(image: Image.Image, form: str = "JPEG", **options: Any) -> Image.Image:
    """The picture after it was saved and opened."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    with Image.open(buffer) as opened:
        return opened.convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return scenes.paint(scenes.plan(2, 0), scale=0.5)


@pytest.fixture(scope="module")
def other() -> Image.Image:
    return scenes.paint(scenes.plan(2, 1), scale=0.5)


@pytest.mark.parametrize("index", range(12))
def test_copies_of_a_scene_are_found_and_other_scenes_are_not_taken_for_them(index: int) -> None:
    image = scenes.paint(scenes.plan(4, index), scale=0.5)
    found = grouped(
        File(image, "a", format="png"),
        File(again(image, quality=60), "b"),
        File(again(image, "WEBP", quality=80), "c"),
        File(resized(image, 0.6), "d"),
        File(again(resized(image, 0.9), quality=75), "e"),
        File(scenes.paint(scenes.plan(4, index + 1), scale=0.5), "z"),
    )
    assert [found[name][:2] for name in "abcde"] == [(0, "a")] * 5
    assert found["z"] == (-1, "", 0, None)


@pytest.mark.parametrize("index", range(12))
def test_a_repainted_variant_is_kept_apart(index: int) -> None:
    image = scenes.paint(scenes.plan(4, index), scale=0.5)
    variant = image.copy()
    side = round((0.04 * image.width * image.height) ** 0.5)  # 4 % of the area
    box = (image.width // 2, image.height // 2, image.width // 2 + side, image.height // 2 + side)
    ImageDraw.Draw(variant).rectangle(box, fill=(20, 160, 60))
    assert grouped(File(image, "a"), File(variant, "b"))["b"][0] == -1


def test_a_variant_within_the_radius_is_told_by_its_thumbnail() -> None:
    planned = scenes.plan(0, 7)
    first, *others = planned.shapes
    recoloured = replace(planned, shapes=(replace(first, colour="green"), *others))
    one, two = scenes.paint(planned), scenes.paint(recoloured)
    rows = candidates([File(one, "a"), File(two, "b")])
    assert len(dedup.find_pairs(rows.phash, radius=PART.radius)) == 1
    assert dedup.groups(rows, PART).group.tolist() == [-1, -1]


def test_a_brighter_copy_has_a_small_thumbnail_difference_and_another_scene_a_large_one(
    scene: Image.Image, other: Image.Image
) -> None:
    brighter = scene.point(lambda value: value * 0.85 + 5)
    thumbs = [np.frombuffer(decode.thumb(image), np.uint8)[None] for image in (scene, brighter, other)]
    assert dedup.thumb_difference(thumbs[0], thumbs[1])[0] < 3
    assert dedup.thumb_difference(thumbs[0], thumbs[2])[0] > 40
    assert dedup.thumb_difference(thumbs[0], thumbs[2]) == dedup.thumb_difference(thumbs[2], thumbs[0])


def test_two_odd_cells_are_forgiven_and_the_third_counts() -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 768), dtype=np.uint8)
    cells = np.random.default_rng(1).permutation(256)
    other = one.copy()
    for changed, cell in enumerate(cells[:3], start=1):
        other[0, 3 * cell] ^= 128
        difference = dedup.thumb_difference(one, other)[0]
        assert (difference > 60) == (changed == 3)


def test_nearly_flat_pictures_are_the_same_by_their_pixels_only() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 3), dtype=np.uint8)
    flat = [Image.fromarray(np.full((64, 64, 3), level, np.uint8) + noise) for level in (100, 101, 102)]
    found = grouped(*(File(image, name) for image, name in zip([*flat, flat[0]], "abcd", strict=True)))
    assert [found[name][0] for name in "abcd"] == [0, -1, -1, 0]


# groups and keepers


def test_more_pixels_are_kept_before_anything_else(scene: Image.Image) -> None:
    found = grouped(File(scene, "a", format="png", score=2.0), File(resized(scene, 1.2), "b", score=0.1))
    assert found["a"][:2] == (0, "b")
    assert found["b"] == (0, "b", 0, None)
    assert found["a"][3] == "near-same as the keeper"


def test_of_like_sizes_the_lossless_one_is_kept_then_the_higher_score(scene: Image.Image) -> None:
    copies = [again(scene, quality=quality) for quality in (95, 90, 85)]
    assert grouped(File(copies[0], "a", score=0.9), File(copies[1], "b", format="png", score=0.5))["a"][1] == "b"
    assert grouped(File(copies[0], "a", score=0.5), File(copies[1], "b", score=0.9))["a"][1] == "b"
    assert grouped(File(copies[0], "a"), File(copies[1], "b", score=0.01))["a"][1] == "b"


def test_of_like_scores_the_larger_file_is_kept_then_the_earlier_then_the_lower_id(scene: Image.Image) -> None:
    one, two = again(scene, quality=95), again(scene, quality=90)
    assert grouped(File(one, "a", score=0.901), File(two, "b", bytes=1001, score=0.902))["a"][1] == "b"
    assert grouped(File(one, "a", date="2012-01-02"), File(two, "b", date="2012-01-01"))["a"][1] == "b"
    assert grouped(File(one, "a"), File(two, "b", date="2024-01-01"))["a"][1] == "b"
    assert grouped(File(one, "b"), File(two, "a"))["b"][1] == "a"


def test_of_the_same_pixels_the_lossless_smaller_file_is_kept(scene: Image.Image) -> None:
    found = grouped(
        File(scene, "a", format="webp", bytes=10),
        File(scene, "b", format="png", bytes=300),
        File(scene, "c", format="png", bytes=200),
    )
    assert [found[name] for name in "abc"] == [
        (0, "c", 0, "same pixels as the keeper"),
        (0, "c", 0, "same pixels as the keeper"),
        (0, "c", 0, None),
    ]


def test_the_same_file_twice_is_kept_once(scene: Image.Image) -> None:
    rows = candidates([File(scene, "a"), File(scene, "a")])
    found = dedup.groups(rows, PART)
    assert found.keeper.tolist() == [0, 0]
    assert found.reason == [None, "same file as the keeper"]


def test_groups_are_numbered_by_their_keepers_id(scene: Image.Image, other: Image.Image) -> None:
    found = grouped(File(scene, "m"), File(other, "c"), File(resized(scene, 0.5), "a"), File(resized(other, 0.5), "z"))
    assert {name: row[:2] for name, row in found.items()} == {
        "m": (1, "m"),
        "a": (1, "m"),
        "c": (0, "c"),
        "z": (0, "c"),
    }


def chain(steps: int) -> dedup.Candidates:
    """Rows of which each is 6 bits from the next, and alike by thumbnail; the first has most pixels, and so on."""
    rng = np.random.default_rng(0)
    bits = np.zeros((steps, 256), np.uint8)
    for step in range(1, steps):
        bits[step] = bits[step - 1]
        bits[step, 6 * step : 6 * step + 6] = 1
    thumb = rng.integers(0, 256, (1, 768), dtype=np.uint8)
    return dedup.Candidates(
        id=[f"{step:03}" for step in range(steps)],
        pixel_id=[f"{step:03}" for step in range(steps)],
        phash=np.packbits(bits, axis=1),
        thumb=np.repeat(thumb, steps, axis=0),
        pixels=np.array([2 ** (40 - step) for step in range(steps)]),
        bytes=np.full(steps, 1000),
        lossless=np.zeros(steps, np.bool_),
        score=np.full(steps, np.nan, np.float32),
        date=[None] * steps,
    )


def test_a_chain_does_not_fall_together_every_row_that_goes_is_a_copy_of_one_kept() -> None:
    found = dedup.groups(chain(6), PART)
    assert found.keeper.tolist() == [0, 0, 2, 2, 4, 4]
    assert found.distance.tolist() == [0, 6, 0, 6, 0, 6]


def test_a_row_near_to_two_kept_ones_goes_to_the_nearer() -> None:
    rows = chain(3)
    bits = np.zeros((3, 256), np.uint8)
    bits[1, :10] = 1  # 10 from the first: kept
    bits[2, :6] = 1  # 6 from the first, 4 from the second
    found = dedup.groups(replace(rows, phash=np.packbits(bits, axis=1)), PART)
    assert found.keeper.tolist() == [-1, 1, 1]
    assert found.distance.tolist() == [0, 0, 4]


def taken(rows: dedup.Candidates, places: list[int]) -> dedup.Candidates:
    columns: dict[str, Any] = {
        name: [values[place] for place in places] if isinstance(values, list) else values[places]
        for name, values in vars(rows).items()
    }
    return dedup.Candidates(**columns)


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    hashes = planted(300, seed=9)
    rows = replace(
        chain(3),
        id=[f"{number:03}" for number in rng.permutation(300)],
        pixel_id=[f"{number:03}" for number in rng.integers(0, 280, 300)],
        phash=hashes,
        thumb=np.repeat(rng.integers(0, 256, (1, 768), dtype=np.uint8), 300, axis=0),
        pixels=rng.choice([1_000_000, 1_020_000, 2_000_000], 300),
        bytes=rng.choice([1000, 2000], 300),
        lossless=rng.random(300) < 0.3,
        score=rng.choice(np.array([0.5, 0.509, 0.9, np.nan], np.float32), 300),
        date=[[None, "2012-01-01", "2013-01-01"][choice] for choice in rng.integers(0, 3, 300)],
    )
    # rows of one pixel_id must have one hash, as they have in a run
    first = {name: number for number, name in reversed(list(enumerate(rows.pixel_id)))}
    rows = replace(rows, phash=hashes[[first[name] for name in rows.pixel_id]])
    order = rng.permutation(300)
    mixed = taken(rows, order.tolist())
    one, two = dedup.groups(rows, PART), dedup.groups(mixed, PART)
    assert one.group.max() > 20
    assert two.group.tolist() == one.group[order].tolist()
    assert two.distance.tolist() == one.distance[order].tolist()
    assert two.reason == [one.reason[place] for place in order]
    kept_one = ["" if keeper < 0 else rows.id[keeper] for keeper in one.keeper]
    assert ["" if keeper < 0 else mixed.id[keeper] for keeper in two.keeper] == [kept_one[place] for place in order]


def test_every_kept_row_is_its_own_keeper_and_no_two_kept_rows_are_copies() -> None:
    hashes = planted(300, seed=5)
    rows = replace(
        chain(3),
        id=[f"{number:03}" for number in range(300)],
        pixel_id=[f"{number:03}" for number in range(300)],
        phash=hashes,
        thumb=np.repeat(np.random.default_rng(0).integers(0, 256, (1, 768), dtype=np.uint8), 300, axis=0),
        pixels=np.full(300, 1_000_000),
        bytes=np.arange(300),
        lossless=np.zeros(300, np.bool_),
        score=np.full(300, np.nan, np.float32),
        date=[None] * 300,
    )
    found = dedup.groups(rows, PART)
    goes = np.array([reason is not None for reason in found.reason])
    assert goes.sum() > 20
    assert (found.keeper[found.keeper[goes]] == found.keeper[goes]).all()
    assert not goes[found.keeper[goes]].any()
    assert (found.distance[goes] <= PART.radius).all()
    assert len(dedup.find_pairs(hashes[~goes], radius=PART.radius)) == 0


def test_no_rows_give_no_groups() -> None:
    empty = candidates([File(Image.new("RGB", (8, 8)), "a")])
    found = dedup.groups(taken(empty, []), PART)
    assert found.group.tolist() == found.keeper.tolist() == found.distance.tolist() == found.reason == []
