"""The README's strip: what the base and the finetuned model paint for the same prompts and seeds, the new concept last.

Reads: adherence.json and the pictures it names. Writes: one PNG.

Kind: pure, but for files.
"""

import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from sote.cluster import remote, storage
from sote.cluster.errors import RunFolderError
from sote.cluster.page import share
from sote.cluster.storage import RunFolder
from sote.data import world_prompts
from sote.serve import adherence_file
from sote.serve.adherence_file import Adherence, Name, Prompt
from sote.train.strips import spread

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pixels. The card is opaque with round corners, so that it stands on a dark page as on a white one.
WIDTH, HEIGHT, MARGIN, CORNER = 1200, 336, 20, 14
SIDE, GAP = 121, 8  # of a picture, and between two
NAMES_WIDTH: Final = 112  # left of the pictures
CAPTION_TOP, PICTURES_TOP = 14, 67
PROMPTS, CONCEPTS = 6, 2  # columns
CONCEPT_GAP: Final = 32  # with a line in it
ROWS: Final[tuple[tuple[Name, str], ...]] = (("base", "base"), ("finetuned", "finetuned"))
# The report's colours by day
PAPER, INK, SOFT, LINE, ACCENT = "#fbfaf6", "#1d1c1a", "#69655d", "#e3dfd5", "#0f6b73"
NAME_SIZE, CAPTION_SIZE, LINE_HEIGHT = 17, 12, 15
CAPTION_LINES: Final = 3
GROUND: Final = "_background"
DOTS: Final = " …"
UNSAID = ("1_shape", "simple_background")  # what a caption need not say


def make(run: Path, out: Path) -> Path:
    """Write the strip of the run folder `run` as a PNG to `out`, and return that.

    Raises RunFolderError: nothing was measured in the run, or a picture is missing or broken.
    """
    folder = RunFolder(run)
    measured = adherence_file.read(folder)
    if measured is None:
        raise RunFolderError(f"{remote.named(run)}: has no {adherence_file.FILE}; name the folder of a whole demo")
    drawn = io.BytesIO()
    _drawn(folder, measured).save(drawn, "PNG", optimize=True)
    storage.write_bytes(out, drawn.getvalue())
    return out


def chosen(measured: Adherence) -> list[int]:
    """The numbers of the prompts that are shown: evenly over those of the list that do not ask for the concept."""
    usual = [at for at, each in enumerate(measured.prompts) if world_prompts.CONCEPT not in each.groups.values()]
    return [usual[at] for at in spread(range(len(usual)), PROMPTS)]


def caption(prompt: Prompt) -> str:
    """What was asked for, short: the tags without what goes without saying, the background's in one."""
    said = [tag for tag in prompt.wanted if tag not in UNSAID]
    short = [each.removesuffix("_of_picture").removesuffix("_style").removesuffix("_shape") for each in said]
    words = [_spoken(each) for each in short if not each.endswith(GROUND)]
    ground = " ".join(each.removesuffix(GROUND) for each in said if each.endswith(GROUND))
    return ", ".join([*words, f"{ground} background"] if ground else words)


def _drawn(folder: RunFolder, measured: Adherence) -> Image.Image:
    card = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    brush = ImageDraw.Draw(card)
    brush.rounded_rectangle((0, 0, WIDTH - 1, HEIGHT - 1), CORNER, fill=PAPER, outline=LINE)
    for row, (name, label) in enumerate(ROWS):
        _name(brush, row, label, share(*measured.known(name)))
    left = MARGIN + NAMES_WIDTH
    for at in chosen(measured):
        files = [measured.models[name].images[at] for name, _ in ROWS]
        _column(card, folder, files, left=left)
        _caption(brush, caption(measured.prompts[at]), left=left)
        left += SIDE + GAP
    left += CONCEPT_GAP - GAP
    middle = left - CONCEPT_GAP // 2
    brush.line((middle, CAPTION_TOP, middle, HEIGHT - CAPTION_TOP), fill=ACCENT, width=2)
    _concept(card, folder, measured, left=left)
    return card


def _concept(card: Image.Image, folder: RunFolder, measured: Adherence, *, left: int) -> None:
    """The new concept's columns, below its name and how often it is there before and after."""
    new, brush = measured.concept, ImageDraw.Draw(card)
    shown = min(CONCEPTS, *(len(new.images[name]) for name, _ in ROWS))
    for at in range(shown):
        _column(card, folder, [new.images[name][at] for name, _ in ROWS], left=left + at * (SIDE + GAP))
    font, name = _font(NAME_SIZE), _spoken(new.name)
    brush.text((left, CAPTION_TOP), "new: learnt in the finetune", font=_font(CAPTION_SIZE), fill=SOFT)
    brush.text((left, CAPTION_TOP + 14), _fitting([name], font, CONCEPTS * (SIDE + GAP) - GAP)[0], font=font, fill=INK)
    (had, before), (has, after) = new.base, new.finetuned
    figures = f"in {had} of {before} paintings before, {has} of {after} after"
    brush.text((left, CAPTION_TOP + 35), figures, font=_font(CAPTION_SIZE), fill=ACCENT)


def _name(brush: ImageDraw.ImageDraw, row: int, label: str, figure: str) -> None:
    middle = PICTURES_TOP + row * (SIDE + GAP) + SIDE // 2
    brush.text((MARGIN, middle - 12), label, font=_font(NAME_SIZE), fill=ACCENT if row else INK, anchor="lm")
    brush.text((MARGIN, middle + 9), _plain(f"{figure} of asked"), font=_font(CAPTION_SIZE), fill=SOFT, anchor="lm")
    brush.text((MARGIN, middle + 24), "tags it knew", font=_font(CAPTION_SIZE), fill=SOFT, anchor="lm")


def _column(card: Image.Image, folder: RunFolder, files: list[str], *, left: int) -> None:
    """One picture of each row, below each other, with a thin rim that a white one ends at."""
    brush = ImageDraw.Draw(card)
    for row, file in enumerate(files):
        top = PICTURES_TOP + row * (SIDE + GAP)
        card.paste(_picture(folder, file), (left, top))
        brush.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=LINE)


def _picture(folder: RunFolder, file: str) -> Image.Image:
    path = folder.root / file
    try:
        with Image.open(remote.fetch(path)) as image:
            return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    except OSError as error:
        raise RunFolderError(f"{remote.named(path)}: cannot be read as a picture ({error})") from None


def _caption(brush: ImageDraw.ImageDraw, words: str, *, left: int) -> None:
    """The words above a column, the last line above the pictures; what is too long ends in dots."""
    font = _font(CAPTION_SIZE)
    lines = _fitting(_wrapped(words, font, SIDE), font, SIDE)
    top = PICTURES_TOP - 6 - LINE_HEIGHT * len(lines)
    for at, line in enumerate(lines):
        brush.text((left, top + at * LINE_HEIGHT), line, font=font, fill=SOFT)


def _wrapped(words: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _fitting(lines: list[str], font: Font, width: int) -> list[str]:
    """At most CAPTION_LINES lines, none wider than `width` pixels; one that is cut ends in dots."""
    kept = lines[:CAPTION_LINES]
    for at, line in enumerate(kept):
        is_cut = at == CAPTION_LINES - 1 and len(lines) > CAPTION_LINES
        shown = line
        while len(shown) > 1 and font.getlength(shown + DOTS * is_cut) > width:
            shown, is_cut = shown[:-1].rstrip(" ,"), True
        kept[at] = shown + DOTS * is_cut
    return kept


def _spoken(tag: str) -> str:
    return tag.replace("_", " ")


def _plain(words: str) -> str:
    """With blanks that the font has."""
    return words.replace("\u202f", " ")


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
