"""Near-duplicates: copies and variants, keepers, what a group's earliest date is."""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sote.data import bands, dedup, scenes
from sote.data.dedup import REASONS, Bytes, Grouping, Ints
from sote.data.hashes import phash, pixel_id, thumb
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


@dataclass(frozen=True)
class Rows:
    """Rows as the decoder and the sidecars describe them; ids and pixel ids by short names."""

    id: list[str]
    pixel_id: list[str]
    phash: Bytes
    thumb: Bytes
    pixels: Ints
    bytes: Ints
    lossless: NDArray[np.bool_]
    score: NDArray[np.float32]
    metadata: Ints
    date: list[str | None]

    def candidates(self) -> dedup.Candidates:
        hash_number = bands.distinct(self.phash)[1]
        hash_number[dedup.deviation(self.thumb) < dedup.FLAT_DEVIATION] = -1
        return dedup.Candidates(
            id=numbers(self.id),
            pixels_number=bands.distinct(numbers(self.pixel_id))[1],
            hash_number=hash_number,
            pixels=self.pixels,
            bytes=self.bytes,
            lossless=self.lossless,
            score=self.score,
            metadata=self.metadata.astype(np.int32),
            day=np.array([dedup.day_of(date) for date in self.date], np.int32),
        )

    def groups(self, part: DuplicatesPart = PART) -> Grouping:
        near = bands.pairs(self.phash[bands.distinct(self.phash)[0]], radius=part.radius)
        return dedup.groups(self.candidates(), near, part=part, thumbs=Held(self.thumb) if part.thumbs else None)

    def taken(self, places: list[int]) -> "Rows":
        columns: dict[str, Any] = {
            name: [values[place] for place in places] if isinstance(values, list) else values[places]
            for name, values in vars(self).items()
        }
        return Rows(**columns)


@dataclass
class Held:
    """Thumbnails in memory, of which only those may be asked for that were fetched."""

    thumb: Bytes
    fetched: Ints | None = None

    def fetch(self, rows: Ints) -> None:
        assert (np.diff(rows) > 0).all()
        self.fetched = rows

    def of(self, rows: Ints) -> Bytes:
        assert self.fetched is not None
        assert np.isin(rows, self.fetched).all()
        return self.thumb[rows]


def numbers(names: list[str]) -> Bytes:
    """Names as the 32 bytes of an id, in the same order as the names."""
    return np.frombuffer(b"".join(name.encode().ljust(32, b"0") for name in names), np.uint8).reshape(-1, 32)


# copies and variants


@dataclass(frozen=True)
class File:
    """A picture as it lies in a file."""

    image: Image.Image
    name: str
    format: str = "jpeg"
    bytes: int = 1000
    score: float = float("nan")
    metadata: int = 0
    date: str | None = None


def rows_of(files: list[File]) -> Rows:
    return Rows(
        id=[file.name for file in files],
        pixel_id=[pixel_id(file.image)[:32] for file in files],
        phash=np.stack([np.frombuffer(phash(file.image), np.uint8) for file in files]),
        thumb=np.stack([np.frombuffer(thumb(file.image), np.uint8) for file in files]),
        pixels=np.array([file.image.width * file.image.height for file in files]),
        bytes=np.array([file.bytes for file in files]),
        lossless=np.array([file.format in dedup.LOSSLESS for file in files]),
        score=np.array([file.score for file in files], np.float32),
        metadata=np.array([file.metadata for file in files]),
        date=[file.date for file in files],
    )


def grouped(*files: File, part: DuplicatesPart = PART) -> dict[str, tuple[int, str, int, str | None]]:
    """For each name: group, name of the keeper, distance, reason."""
    found = rows_of(list(files)).groups(part)
    keepers = ["" if keeper < 0 else files[keeper].name for keeper in found.keeper]
    reasons = [REASONS[reason] for reason in found.reason]
    columns = zip(files, found.group.tolist(), keepers, found.distance.tolist(), reasons, strict=True)
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
    rows = rows_of([File(one, "a"), File(two, "b")])
    assert len(bands.pairs(rows.phash, radius=PART.radius)) == 1
    assert rows.groups().group.tolist() == [-1, -1]
    assert rows.groups(DuplicatesPart(thumbs=False)).group.tolist() == [0, 0]


def test_a_brighter_copy_has_a_small_thumbnail_difference_and_another_scene_a_large_one(
    scene: Image.Image, other: Image.Image
) -> None:
    brighter = scene.point(lambda value: value * 0.85 + 5)
    thumbs = [np.frombuffer(thumb(image), np.uint8)[None] for image in (scene, brighter, other)]
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
    found = rows_of([File(scene, "a"), File(scene, "a")]).groups()
    assert found.keeper.tolist() == [0, 0]
    assert [REASONS[reason] for reason in found.reason] == [None, "same file as the keeper"]


def test_groups_are_numbered_by_their_keepers_id(scene: Image.Image, other: Image.Image) -> None:
    found = grouped(File(scene, "m"), File(other, "c"), File(resized(scene, 0.5), "a"), File(resized(other, 0.5), "z"))
    assert {name: row[:2] for name, row in found.items()} == {
        "m": (1, "m"),
        "a": (1, "m"),
        "c": (0, "c"),
        "z": (0, "c"),
    }


def chain(steps: int) -> Rows:
    """Rows of which each is 6 bits from the next, and alike by thumbnail; the first has most pixels, and so on."""
    rng = np.random.default_rng(0)
    bits = np.zeros((steps, 256), np.uint8)
    for step in range(1, steps):
        bits[step] = bits[step - 1]
        bits[step, 6 * step : 6 * step + 6] = 1
    thumb = rng.integers(0, 256, (1, 768), dtype=np.uint8)
    return Rows(
        id=[f"{step:03}" for step in range(steps)],
        pixel_id=[f"{step:03}" for step in range(steps)],
        phash=np.packbits(bits, axis=1),
        thumb=np.repeat(thumb, steps, axis=0),
        pixels=np.array([2 ** (40 - step) for step in range(steps)]),
        bytes=np.full(steps, 1000),
        lossless=np.zeros(steps, np.bool_),
        score=np.full(steps, np.nan, np.float32),
        metadata=np.zeros(steps, np.int64),
        date=[None] * steps,
    )


def test_a_chain_does_not_fall_together_every_row_that_goes_is_a_copy_of_one_kept() -> None:
    found = chain(6).groups()
    assert found.keeper.tolist() == [0, 0, 2, 2, 4, 4]
    assert found.distance.tolist() == [0, 6, 0, 6, 0, 6]


def test_a_row_near_to_two_kept_ones_goes_to_the_nearer() -> None:
    rows = chain(3)
    bits = np.zeros((3, 256), np.uint8)
    bits[1, :10] = 1  # 10 from the first: kept
    bits[2, :6] = 1  # 6 from the first, 4 from the second
    found = replace(rows, phash=np.packbits(bits, axis=1)).groups()
    assert found.keeper.tolist() == [-1, 1, 1]
    assert found.distance.tolist() == [0, 0, 4]


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
        metadata=rng.integers(0, 2, 300),
        date=[[None, "2012-01-01", "2013"][choice] for choice in rng.integers(0, 3, 300)],
    )
    # rows of one pixel_id must have one hash, as they have in a run
    first = {name: number for number, name in reversed(list(enumerate(rows.pixel_id)))}
    rows = replace(rows, phash=hashes[[first[name] for name in rows.pixel_id]])
    order = rng.permutation(300)
    mixed = rows.taken(order.tolist())
    one, two = rows.groups(), mixed.groups()
    assert one.group.max() > 20
    assert two.group.tolist() == one.group[order].tolist()
    assert two.distance.tolist() == one.distance[order].tolist()
    assert two.reason.tolist() == one.reason[order].tolist()
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
        metadata=np.zeros(300, np.int64),
        date=[None] * 300,
    )
    found = rows.groups()
    goes = found.reason > 0
    assert goes.sum() > 20
    assert (found.keeper[found.keeper[goes]] == found.keeper[goes]).all()
    assert not goes[found.keeper[goes]].any()
    assert (found.distance[goes] <= PART.radius).all()
    assert len(bands.pairs(hashes[~goes], radius=PART.radius)) == 0


def test_no_rows_give_no_groups() -> None:
    found = rows_of([File(Image.new("RGB", (8, 8)), "a")]).taken([]).groups()
    assert found.group.tolist() == found.keeper.tolist() == found.distance.tolist() == found.reason.tolist() == []


def test_what_people_wrote_about_a_picture_counts_before_the_date_and_after_the_bytes(scene: Image.Image) -> None:
    one, two = again(scene, quality=95), again(scene, quality=90)
    assert grouped(File(one, "a", date="2012"), File(two, "b", metadata=3))["a"][1] == "b"
    assert grouped(File(one, "a", bytes=1001), File(two, "b", metadata=3))["b"][1] == "a"


def test_only_the_keys_of_the_recipe_decide_and_in_its_order(scene: Image.Image) -> None:
    one = File(resized(scene, 1.2), "a", score=0.1, date="2013")
    two = File(scene, "b", score=0.9, date="2012")
    expected = {
        ("size", "score"): "a",
        ("score", "size"): "b",
        ("date",): "b",
        ("size",): "a",
        (): "a",
        ("bytes",): "a",
    }
    for keep, keeper in expected.items():
        part = PART.model_copy(update={"keep": keep})
        assert {row[1] for row in grouped(one, two, part=part).values()} == {keeper}


def test_rows_that_take_no_part_are_in_no_group(scene: Image.Image) -> None:
    rows = rows_of([File(scene, "a"), File(scene, "b"), File(scene, "c")])
    candidates = rows.candidates()
    candidates.pixels_number[1] = candidates.hash_number[1] = -1
    candidates.pixels_number[2] = -1
    candidates.hash_number[2] = -1
    near = np.empty((0, 3), np.int64)
    found = dedup.groups(candidates, near, part=PART, thumbs=Held(rows.thumb))
    assert found.group.tolist() == [-1, -1, -1]


# many of one hash


def one_hash(thumbs: Bytes) -> Rows:
    """Rows of one hash and different pixels, the first the best, with these thumbnails."""
    rows = chain(1).taken([0] * len(thumbs))
    names = [f"{number:05}" for number in range(len(thumbs))]
    return replace(rows, id=names, pixel_id=names, bytes=-np.arange(len(thumbs)), thumb=thumbs)


def test_one_picture_very_often_is_one_group_and_each_copy_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    difference = dedup.thumb_difference

    def counted(one: Bytes, other: Bytes) -> NDArray[np.float32]:
        compared.append(len(one))
        return difference(one, other)

    monkeypatch.setattr(dedup, "thumb_difference", counted)
    found = one_hash(np.repeat(chain(1).thumb, 10_000, axis=0)).groups()
    assert found.keeper.tolist() == [0] * 10_000
    assert sum(compared) == 9_999
    assert max(compared) <= dedup.CHUNK


def test_variants_of_one_hash_are_apart_and_each_has_its_copies() -> None:
    rng = np.random.default_rng(0)
    variants = rng.integers(0, 256, (3, 768), dtype=np.uint8)
    found = one_hash(variants[[0, 1, 0, 2, 1, 1, 2]]).groups()
    assert found.keeper.tolist() == [0, 1, 0, 3, 1, 1, 3]
    assert found.distance.tolist() == [0] * 7


def test_rows_of_one_hash_go_together_to_a_better_one_of_a_near_hash() -> None:
    rows = one_hash(np.repeat(chain(1).thumb, 5, axis=0))
    hashes = rows.phash.copy()
    hashes[0, 0] ^= 0b111
    found = replace(rows, phash=hashes).groups()
    assert found.keeper.tolist() == [0] * 5
    assert found.distance.tolist() == [0, 3, 3, 3, 3]


def test_two_hashes_with_many_rows_each_do_not_become_pairs_of_rows() -> None:
    rows = one_hash(np.repeat(chain(1).thumb, 20_000, axis=0))
    hashes = rows.phash.copy()
    hashes[::2, 0] ^= 1  # 2e8 pairs of rows, one of hashes
    found = replace(rows, phash=hashes).groups()
    assert found.keeper.tolist() == [0] * 20_000
    assert found.distance.tolist() == [0, 1] * 10_000


# dates


def test_days_sort_by_time_and_a_known_day_comes_before_the_year_alone() -> None:
    dates = ["2018", "2019-05-01T23:00:00+09:00", "2019-05-02", "2019-05", "2019", "2020-01-01", None]
    days = [dedup.day_of(date) for date in dates]
    assert days == sorted(days)
    assert len(set(days)) == len(days)
    assert [dedup.day_text(day) for day in days[:-1]] == [
        "2018",
        "2019-05-01",
        "2019-05-02",
        "2019-05",
        "2019",
        "2020-01-01",
    ]
    assert dedup.day_of("unknown") == dedup.UNKNOWN_DAY == days[-1]


def test_a_keeper_has_the_earliest_day_of_its_group_and_others_have_their_own(scene: Image.Image) -> None:
    files = [
        File(resized(scene, 2), "a", date="2019"),
        File(scene, "b", date="2012-01-02"),
        File(resized(scene, 0.9), "c"),
        File(Image.effect_noise((64, 64), 90).convert("RGB"), "d", date="2001"),
    ]
    rows = rows_of(files)
    days = dedup.earliest(rows.candidates().day, rows.groups())
    assert days.tolist() == [20120102, 20120102, dedup.UNKNOWN_DAY, 20019999]
