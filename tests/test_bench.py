"""The runner of the benches: names of machines, what it keeps, what it shows, and what it says it did not measure."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent / "bench"


@pytest.fixture(autouse=True)
def _as_a_bench_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches are scripts: their folder is where they import from."""
    monkeypatch.syspath_prepend(str(BENCH))


def answer_of(*, peer: float | None = 2.0, better: Any = "higher") -> Any:
    from rows import Answer, Plot, Row

    row = Row("tags | a second", 1.0, "rows/s", better, peer, "a plain script")
    plot = Plot("Growth of tags", "rows", "rows/s", {"ours": [(1000.0, 10.0), (10_000.0, 20.0)]}, is_log=True)
    return Answer((row,), (plot,), ("a GPU",))


def kept_of(folder: Path, *answers: Any, bench: str = "caption") -> dict[str, Any]:
    """The results of a machine to which a bench's answers came one after the other."""
    import results
    from machine import Machine

    machine = Machine("AMD EPYC", 2, None)
    path = results.path_of(machine, folder)
    for answer in answers:
        results.put_rows(path, machine, bench, answer, results.origin(machine, command="a command"))
    return results.load(path)


@pytest.mark.parametrize(
    ("cpu", "cores", "gpu", "gpus", "name"),
    [
        ("AMD EPYC", 2, None, 0, "2cpu-amd-epyc"),
        ("AMD EPYC 9654 96-Core Processor", 8, None, 0, "8cpu-amd-epyc-9654"),
        ("Intel(R) Xeon(R) CPU @ 2.60GHz", 2, None, 0, "2cpu-intel-xeon"),
        ("Intel(R) Xeon(R)", 16, "NVIDIA H200", 1, "h200-16cpu"),
        ("AMD EPYC", 96, "NVIDIA A100-SXM4-80GB", 8, "8xa100-sxm4-80gb-96cpu"),
    ],
)
def test_a_machine_is_named_by_its_hardware(cpu: str, cores: int, gpu: str | None, gpus: int, name: str) -> None:
    from machine import Machine

    assert Machine(cpu, cores, gpu, gpus).name == name


def test_the_table_is_what_the_kept_results_say() -> None:
    import results
    import tables

    assert (BENCH.parents[1] / "BENCHMARKS.md").read_text(encoding="utf-8") == tables.markdown(
        results.everything(results.FOLDER)
    )


def test_a_bench_that_lacks_what_it_measures_says_how_that_is_made() -> None:
    from benches import BY_NAME
    from machine import Machine

    bench = BY_NAME["adherence large"]
    assert bench.why_not("usual", Machine("AMD EPYC", 2, None)) == "needs a GPU, and there is none here"
    missing = bench.file is not None and not (BENCH.parents[1] / bench.file).exists()
    said = bench.why_not("usual", Machine("AMD EPYC", 2, "NVIDIA H200", 1))
    assert said == ("needs runs/base-large/weights, which `make base SIZE=large` makes" if missing else None)


def test_a_ratio_says_how_many_times_better_ours_is_whichever_way_is_better() -> None:
    assert answer_of().rows[0].ratio == 0.5
    assert answer_of(better="lower").rows[0].ratio == 2.0
    assert answer_of(peer=None).rows[0].ratio is None


def test_what_a_bench_hands_over_is_read_back_as_it_was(tmp_path: Path) -> None:
    import rows

    rows.write(tmp_path / "answer.json", answer_of())
    assert rows.read(tmp_path / "answer.json") == answer_of()


def test_a_row_is_kept_with_all_that_says_where_it_is_from(tmp_path: Path) -> None:
    row = kept_of(tmp_path, answer_of())["rows"][0]
    wanted = {"what", "ours", "peer", "unit", "ratio", "better", "machine", "date", "commit", "dirty", "command"}
    assert wanted <= row.keys()
    assert (row["machine"], row["ratio"], row["command"]) == ("2cpu-amd-epyc", 0.5, "a command")


def test_a_second_run_of_a_bench_takes_the_place_of_the_first(tmp_path: Path) -> None:
    kept = kept_of(tmp_path, answer_of(), answer_of(peer=4.0))
    assert [row["ratio"] for row in kept["rows"]] == [0.25]
    assert len(kept["plots"]) == 1


def test_the_table_shows_a_row_that_loses_as_plainly_and_what_was_not_measured(tmp_path: Path) -> None:
    import tables

    text = tables.markdown([kept_of(tmp_path, answer_of())])
    line = next(line for line in text.splitlines() if line.startswith("| tags / a second"))
    assert "| **0.50** |" in line
    assert "`a command`" in line
    assert "- caption, on 2cpu-amd-epyc: a GPU" in text
    assert "- scale: no figures are kept yet" in text


def test_what_is_not_known_of_a_row_is_not_said_to_be_clean_or_idle(tmp_path: Path) -> None:
    import tables

    kept = kept_of(tmp_path, answer_of())
    cases = ((None, None, "abc?", ", ?"), (True, 1.0, "abc+", ", busy"), (False, 0.0, "abc", ""))
    for dirty, busy_cores, commit, busy in cases:
        kept["rows"][0] |= {"dirty": dirty, "busy_cores": busy_cores, "commit": "abc"}
        line = next(line for line in tables.markdown([kept]).splitlines() if line.startswith("| tags / a second"))
        assert f"| {commit} |" in line
        assert f"| 2cpu-amd-epyc{busy} |" in line


def test_the_table_says_which_benches_the_usual_run_leaves_to_the_long_one() -> None:
    import tables

    assert "Only `make bench BENCH=--long` runs load, fuzzing, faults and scale." in tables.markdown([])


def test_the_usual_run_measures_every_size_of_a_catalogue_that_is_kept() -> None:
    from benches import BY_NAME

    usual = BY_NAME["catalogue"].at("usual")
    assert usual is not None
    assert usual.arguments == "--growth 1000,10000,100000,1000000,6000000"
    assert BY_NAME["catalogue"].at("long") == usual


def test_a_bench_without_the_gpu_that_it_needs_is_named_as_not_measured(tmp_path: Path) -> None:
    import run
    import tables
    from benches import BY_NAME
    from machine import Machine

    chosen = [bench for bench in BY_NAME.values() if bench.gpu_only]
    places = run.Places(tmp_path / "results", tmp_path / "BENCHMARKS.md", tmp_path / "report.html")
    machine = Machine("AMD EPYC", 2, None)
    assert run.run(chosen, "usual", machine, places=places, commit=None) == []
    text = tables.markdown(run.results.everything(places.results))
    for name in ("training pieces", "models"):
        assert f"- {name}, on 2cpu-amd-epyc: needs a GPU, and there is none here" in text


def test_rows_of_traced_blocks_are_not_called_compiled() -> None:
    import train_step

    names = {
        size: [name for name, _ in train_step.makers(size, train_step.Figures("", None))]
        for size in (train_step.FULL, train_step.SMALL)
    }
    assert names[train_step.FULL][-1] == "own compiled"
    assert names[train_step.SMALL][-1] == "own traced (not compiled)"


def test_the_depthwise_convolution_as_nine_products_is_torchs() -> None:
    import torch
    from torch.nn import functional
    from train_pieces import nine_products

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32).requires_grad_()

    inputs = x_BHWC, kernel, bias = drawn(2, 5, 7, 6), drawn(6, 1, 3, 3), drawn(6)
    plainly = functional.conv2d(x_BHWC.permute(0, 3, 1, 2), kernel, bias, padding=1, groups=6).permute(0, 2, 3, 1)
    products = nine_products(*inputs)
    torch.testing.assert_close(products, plainly, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(products.shape, generator=generator)
    found, wanted = (torch.autograd.grad(made, inputs, gradient) for made in (products, plainly))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_a_small_run_of_the_cascade_says_that_it_saw_no_gpu() -> None:
    import torch

    import serve

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert serve.unseen("small", cpu, is_compiled=False) == [serve.NO_GPU]
    assert serve.unseen("small", cuda, is_compiled=True) == ["full size, bfloat16"]
    assert serve.unseen("full", cuda, is_compiled=True) == []


def test_a_profile_names_the_operations_of_a_call() -> None:
    import torch

    import serve

    square = torch.ones(8, 8)
    assert "aten::mm" in serve.profiled(lambda: square @ square, torch.device("cpu"))


def test_the_peer_that_tags_pads_with_white_and_keeps_the_mean_of_an_area(tmp_path: Path) -> None:
    from peers import tagging_loop
    from PIL import Image

    checks = np.indices((64, 32)).sum(axis=0) % 2 * 200
    Image.fromarray(np.repeat(checks[:, :, None], 3, axis=2).astype(np.uint8)).save(tmp_path / "checks.png")
    seen = tagging_loop.opened(tmp_path / "checks.png", side=16)
    assert seen.shape == (16, 16, 3)
    assert (seen[:, :4] == 255).all()
    assert (seen[:, 4:12] == 100).all()


def test_the_demo_that_was_read_says_what_is_met_and_where_it_is_from(tmp_path: Path) -> None:
    import adherence

    from tests.serve.measured import measure

    measure(tmp_path)
    part = {"start": "2026-01-01T10:00:00+00:00", "end": "2026-01-01T10:01:00+00:00", "continued": 0}
    verbs = {"curate": part, "serve": part | {"end": "2026-01-01T10:16:40+00:00"}}
    told = {"commit": "abc", "verbs": verbs}
    (tmp_path / "run.json").write_text(json.dumps(told))
    rows = adherence.answer(tmp_path).rows
    assert [row.note.partition(";")[0] for row in rows[:2]] == ["goal at least 80%: NOT MET", "goal at least 70%: met"]
    assert all(f"read from {tmp_path}, begun 2026-01-01T10:00:00+00:00, commit abc" in row.note for row in rows)
    (seconds,) = [row for row in rows if row.unit == "s"]
    assert seconds.ours == 1000
    assert seconds.note.startswith("goal at most 900: NOT MET")
    verbs["serve"]["continued"] = 1
    (tmp_path / "run.json").write_text(json.dumps(told))
    again = adherence.answer(tmp_path)
    assert not [row for row in again.rows if row.unit == "s"]
    assert any("continued" in why for why in again.not_measured)


def test_the_page_draws_growth_and_loads_nothing(tmp_path: Path) -> None:
    from pages import report

    kept = kept_of(tmp_path, answer_of())
    page = report(kept, [])
    assert "polyline" in page
    assert "Growth of tags" in page
    assert "http" not in page.replace("http-equiv", "")
    assert kept["plots"][0]["svg"].startswith("<svg")


def test_an_earlier_figure_stays_when_a_bench_is_not_run(tmp_path: Path) -> None:
    import results
    from machine import Machine

    kept_of(tmp_path, answer_of())
    machine = Machine("AMD EPYC", 2, None)
    path, where = results.path_of(machine, tmp_path), results.origin(machine, command="")
    results.put_missing(path, machine, {"caption": "not today", "models": "needs a GPU"}, where)
    kept = results.load(path)
    assert len(kept["rows"]) == 1
    assert {each["why"] for each in kept["not_measured"]} == {"a GPU", "needs a GPU"}


def test_every_bench_has_its_script_and_is_written_about() -> None:
    from benches import BENCHES

    notes = (BENCH / "NOTES.md").read_text(encoding="utf-8")
    for bench in BENCHES:
        assert (BENCH / bench.script).is_file()
        assert bench.script in notes


def test_the_peer_of_near_duplicates_finds_the_pairs_of_a_comparison_of_all_with_all() -> None:
    from peers import near

    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 256, (60, 32), dtype=np.uint8)
    hashes[30:] = hashes[:30]
    hashes[40:, 3] ^= 1
    wanted = sum(
        int(np.bitwise_count(hashes[one] ^ hashes[other]).sum()) <= 8 for one in range(60) for other in range(one)
    )
    for way in near.installed().values():
        assert way(hashes, 8)[1] == wanted


def test_the_runner_runs_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "run.py", "--tiny", "--only", "caption,replicas", "--out", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (path,) = (tmp_path / "results").glob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert {row["what"] for row in kept["rows"]} == {"captions", "buckets"}
    assert [each["bench"] for each in kept["not_measured"]] == ["replicas"]
    assert "bench_caption.py --rows 200" in (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.html").is_file()


def test_a_bench_that_takes_too_long_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run
    from benches import Bench, Run

    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(run, "HERE", tmp_path)
    said, seconds = run.one(Bench("slow", "", "slow.py", {"usual": Run(1)}), "usual")
    assert said == "ended by the runner after 1.0 s"
    assert seconds < 30


def test_a_name_that_no_bench_has_is_refused_in_one_line() -> None:
    command = [sys.executable, BENCH / "run.py", "--only", "captions"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "captions" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
