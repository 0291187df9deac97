"""What the README and its pages say holds: figures, commands, recipes, links."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from sote.cluster import cli, storage
from sote.cluster import recipe as recipes
from sote.cluster.recipe import Recipe
from sote.data import costs, pipeline, plan
from sote.data.recipe import CurateRecipe
from sote.serve.recipe import ServeRecipe
from sote.train.recipe import TrainRecipe
from tests.conftest import Command

TOP = Path(__file__).resolve().parent.parent
README, BENCHMARKS = TOP / "README.md", TOP / "BENCHMARKS.md"
PAGES = [README, *sorted((TOP / "docs").glob("*.md"))]
KINDS: dict[str, type[Recipe]] = {"curate": CurateRecipe, "train": TrainRecipe, "serve": ServeRecipe}
NUMBER = r"\d[\d.,]*"
THINGS = r"(?:pictures|images|rows|steps|requests|latents|files|slices|tokens|it)"
# How much in how long, how many times as much, a share, milliseconds: what is measured, and ages
FIGURES = re.compile(
    rf"{NUMBER} ?{THINGS} ?(?:/ ?s|(?:a|per) (?:second|minute|hour))\b|{NUMBER} ?(?:times|x|×|%|ms|us|TFLOP/s)(?!\w)"
)
GLOBAL_OPTIONS = ("--address",)  # of `sote` itself: with a value, before the verb


def of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return str(page.relative_to(TOP))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words after `sote` of each line of a block that begins with it."""
    for language, block in blocks(text):
        for line in block.splitlines() if not language else ():
            words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?sote ", line) else []
            if words:
                yield words[1:]


def recipe_blocks(text: str) -> dict[str, tuple[str, str]]:
    """Verb and text of each recipe of a page, by the file that it is called: `# sote VERB FILE` is its first line."""
    found = re.finditer(r"^```toml\n(# sote (\w+) (\S+)\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    return {match[3]: (match[2], match[1]) for match in found}


RECIPES = recipe_blocks(of(README))


def figures(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [match[0] for match in FIGURES.finditer(prose)]


def test_a_figure_is_seen_as_one() -> None:
    said = (
        "42 pictures/s, 1.07 times, 6,000 rows a second, 0.93 %, 29 ms, 3x; 24 GB, 8 GPUs, 350 hours, 120,000 pictures"
    )
    assert figures(said) == ["42 pictures/s", "1.07 times", "6,000 rows a second", "0.93 %", "29 ms", "3x"]


def test_no_figure_of_speed_stands_in_the_readme_that_the_benchmarks_do_not_hold() -> None:
    held = of(BENCHMARKS) if BENCHMARKS.is_file() else ""
    assert not [figure for figure in figures(of(README)) if figure not in held]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page: Path) -> None:
    top = typer.main.get_command(cli.app)
    found = list(commands(of(page)))
    assert found
    for words in found:
        at, rest = top, words
        while rest[0] in GLOBAL_OPTIONS:
            rest = rest[2:]
        context = click.Context(at, info_name="sote")
        while isinstance(at, click.Group):
            _, inner, rest = at.resolve_command(context, rest)
            assert inner is not None, words
            at = inner
        at.make_context(words[0], list(rest), parent=context)  # raises click.UsageError


@pytest.mark.parametrize("file", RECIPES)
def test_every_recipe_of_the_readme_is_valid(file: str, tmp_path: Path) -> None:
    verb, text = RECIPES[file]
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert recipes.load(tmp_path / file, KINDS[verb]).run


def test_the_readme_has_a_recipe_for_each_verb_and_commands_that_name_them() -> None:
    assert {verb for verb, _ in RECIPES.values()} == set(KINDS)
    named = {word for words in commands(of(README)) for word in words if re.fullmatch(r"\w+\.toml", word)}
    assert named == set(RECIPES)


def test_the_captions_of_the_readme_get_latents_by_the_command_that_it_gives(tmp_path: Path) -> None:
    file, (_, text) = tmp_path / "caption.toml", RECIPES["caption.toml"]
    text = text.replace('run = "runs/captions"', f"run = '{tmp_path / 'run'}'")
    for more, stage in (("", None), ("\n[latents]\n", "latents")):
        file.write_text(text + more, encoding="utf-8")
        recipe = recipes.load(file, CurateRecipe)
        with storage.open_run(recipe, verb="curate", command="sote curate", may_differ=pipeline.may_differ(stage)):
            pass
    assert ["curate", "caption.toml", "--stage", "latents"] in list(commands(of(README)))


def test_the_hours_of_captions_are_the_plan_s() -> None:
    said = re.search(
        r"for 10,000 pictures 4 minutes of an RTX 4090, or 5\.6 hours of eight CPU cores", " ".join(of(README).split())
    )
    assert said, "say here what README.md says now"
    recipe = recipes.loads(RECIPES["caption.toml"][1], CurateRecipe, name="caption.toml")
    for devices, hours in (({"RTX 4090": 1}, 4 / 60), ({}, 5.6)):
        found = plan.hours_of(recipe, costs.Machine(cores=8, devices=devices), rows=10_000)
        assert sum(each.hours for each in found) == pytest.approx(hours, rel=0.02)


def test_the_arithmetic_that_the_readme_expects_is_what_check_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sote: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune.toml").write_text(RECIPES["finetune.toml"][1], encoding="utf-8")
    code, out, error = sote("check", "finetune.toml")
    assert code == 0, error
    said = re.search(r"12\.1 GB, and 1\.5 to 3\.0 hours on an RTX 4090", " ".join(of(README).split()))
    assert said, "say here what README.md says now"
    assert re.search(r"^ *total +12\.1 ", out + error, re.MULTILINE)
    assert re.search(r"^ *RTX4090-24GB .* yes +3\.0 h .* 1\.5 h", out + error, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_pictures_and_named_files_are_there(page: Path) -> None:
    text = of(page)
    links = [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r'<img src="([^"]+)"', text)]
    for link in links:
        assert link.startswith("https://") or (page.parent / link).is_file(), link
    tracked = subprocess.run(["git", "-C", TOP, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    folders = {part.rpartition("/")[0] for part in tracked}
    for path in re.findall(r"(?<![\w/.])((?:cluster|data|train|serve|tests|docs|notebooks)/[\w./-]+\w)", text):
        assert path in tracked or path in folders or (TOP / path).is_file(), path


def test_every_page_of_docs_is_named_in_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"]({name(page)})" in of(README)
