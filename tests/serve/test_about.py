"""What the server says of itself, and what a public server must be able to say before it starts."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from sote.cluster import weights as known
from sote.cluster.errors import UserError, WeightsError
from sote.serve import about
from sote.serve.about import About
from sote.serve.recipe import AboutPart, AccessPart, DefaultsPart, LimitsPart, ModelPart, SafetyPart, ServeRecipe
from sote.serve.schema import GenerateRequest

FAIR = "Fair AI Public License 1.0-SD"
SOURCE = "https://example.org/weights"


@pytest.fixture
def licensed(weights: Path, tmp_path: Path) -> ModelPart:
    """The miniature models, with metadata as a training writes them."""
    for name, licence in (("prior", FAIR), ("decoder", "MIT")):
        shutil.copytree(weights / name, tmp_path / name)
        say(tmp_path / name / name / "diffusion_pytorch_model.safetensors", licence=licence)
    return ModelPart(prior=str(tmp_path / "prior"), decoder=str(tmp_path / "decoder"))


def say(file: Path, **metadata: str) -> None:
    with safe_open(file, "pt") as opened:  # type: ignore[no-untyped-call]
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        before = opened.metadata() or {}
    save_file(tensors, file, metadata=before | metadata)


def recipe_of(model: ModelPart, run: Path, **parts: Any) -> ServeRecipe:
    return ServeRecipe(run=str(run), model=model, **parts)


def public(model: ModelPart, tmp_path: Path, **said: str) -> ServeRecipe:
    access = AccessPart(keys=str(tmp_path / "keys.toml"))
    return recipe_of(model, tmp_path / "run", host="0.0.0.0", access=access, about=AboutPart(**said))


def document_with_hashes(made: About) -> about.Document:
    made.document()  # begins to compute
    assert made.hashes.thread is not None
    made.hashes.thread.join(timeout=60)
    return made.document()


def test_the_document_names_models_licences_and_source(licensed: ModelPart, tmp_path: Path) -> None:
    made = About.of(recipe_of(licensed, tmp_path / "run", about=AboutPart(source_url=SOURCE)))
    told = made.document()
    assert [(each["role"], each["name"], each["licence"]) for each in told["models"]] == [
        ("prior", "prior", FAIR),
        ("decoder", "decoder", "MIT"),
    ]
    assert [each["asks_for_source"] for each in told["models"]] == [True, False]
    assert told["licences"] == [FAIR, "MIT", known.STABILITY]
    assert told["source_url"] == SOURCE
    assert SOURCE in (told["source_offer"] or "")
    assert made.headers() == {"Link": f'</v1/about>; rel="license", <{SOURCE}>; rel="source"'}


def test_nothing_of_the_machine_is_told(licensed: ModelPart, tmp_path: Path) -> None:
    safety = SafetyPart(blocked_tags=("gore",))
    made = About.of(recipe_of(licensed, tmp_path / "run", safety=safety))
    text = json.dumps(document_with_hashes(made))
    assert str(tmp_path) not in text
    assert tmp_path.name not in text


def test_hashes_are_computed_once_after_the_start_and_kept(licensed: ModelPart, tmp_path: Path) -> None:
    recipe = recipe_of(licensed, tmp_path / "run")
    made = About.of(recipe)
    assert made.model_hash is None
    assert not (tmp_path / "run").exists()  # nothing is written before the document is asked for
    told = document_with_hashes(made)
    file = tmp_path / "prior" / "prior" / "diffusion_pytorch_model.safetensors"
    assert told["model_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (one,) = told["models"][0]["files"]
    assert one == {"name": file.name, "bytes": file.stat().st_size, "sha256": told["model_hash"]}
    again = About.of(recipe)
    assert again.model_hash == told["model_hash"]
    again.document()
    assert again.hashes.thread is None  # nothing is left to compute
    say(file, changed="yes")
    assert About.of(recipe).model_hash is None  # another file now


def test_broken_notes_of_hashes_are_computed_anew(licensed: ModelPart, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hashes.json").write_text("[1, ")
    assert document_with_hashes(About.of(recipe_of(licensed, tmp_path / "run")))["model_hash"] is not None


def test_a_file_of_the_cache_has_its_hash_as_name(licensed: ModelPart, tmp_path: Path) -> None:
    file = tmp_path / "prior" / "prior" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    blob = tmp_path / "blobs" / digest  # as the Hugging Face cache has it
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(blob)
    assert About.of(recipe_of(licensed, tmp_path / "run")).model_hash == digest


def test_a_model_in_parts_has_one_hash(licensed: ModelPart, tmp_path: Path) -> None:
    folder = tmp_path / "prior" / "prior"
    whole = folder / "diffusion_pytorch_model.safetensors"
    for number in (1, 2):
        shutil.copy(whole, folder / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    whole.unlink()
    told = document_with_hashes(About.of(recipe_of(licensed, tmp_path / "run")))
    digests = [each["sha256"] for each in told["models"][0]["files"]]
    assert len(digests) == 2
    assert told["model_hash"] == hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()


def test_a_hash_in_the_metadata_is_told_beside_that_of_the_file(licensed: ModelPart, tmp_path: Path) -> None:
    digest = "ab" * 32
    say(
        tmp_path / "prior" / "prior" / "diffusion_pytorch_model.safetensors", **{"modelspec.hash_sha256": f"0x{digest}"}
    )
    told = About.of(recipe_of(licensed, tmp_path / "run")).document()
    assert told["models"][0]["tensors_sha256"] == digest
    assert told["models"][1]["tensors_sha256"] is None


def test_the_recipe_names_the_model_and_its_licence_before_the_files(licensed: ModelPart, tmp_path: Path) -> None:
    model = licensed.model_copy(update={"name": "mine"})
    told = About.of(recipe_of(model, tmp_path / "run", about=AboutPart(licence="CC0-1.0"))).document()
    assert told["model"] == "mine"
    assert told["licences"] == ["CC0-1.0", known.STABILITY]


def test_a_file_that_says_only_what_it_was_made_from_has_that_licence(licensed: ModelPart, tmp_path: Path) -> None:
    file = tmp_path / "decoder" / "decoder" / "diffusion_pytorch_model.safetensors"
    say(file, licence="that of the file which these weights are from", base="sotediffusion-wuerstchen3-decoder")
    told = About.of(recipe_of(licensed, tmp_path / "run")).document()
    assert told["models"][1]["licence"] == known.FAIR


def test_a_training_runs_newest_checkpoint_is_told(licensed: ModelPart, tmp_path: Path, weights: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / "trained" / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        for name in ("prior.safetensors", "ema_prior.safetensors"):
            shutil.copy(weights / "prior" / "prior" / "diffusion_pytorch_model.safetensors", folder / name)
            say(folder / name, licence=f"of step {step}")
    model = licensed.model_copy(update={"prior": str(tmp_path / "trained")})
    (prior, _) = About.of(recipe_of(model, tmp_path / "run")).models
    assert (prior.licence, [file.name for file in prior.files]) == ("of step 10", ["prior.safetensors"])


@pytest.mark.parametrize(
    ("licence", "asks"),
    [
        (known.FAIR, True),
        (FAIR, True),
        ("fair-ai-public-license-1.0-sd", True),
        ("faipl-1.0-sd", True),
        ("AGPL-3.0-or-later", True),
        ("GNU Affero General Public License", True),
        (known.STABILITY, False),
        ("Apache-2.0", False),
        ("", False),
    ],
)
def test_which_licences_ask_for_an_offer_of_source(licence: str, asks: bool) -> None:
    assert about.asks_for_source(licence) is asks


def test_a_public_server_must_offer_the_source_where_the_licence_asks(licensed: ModelPart, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"about\.source_url: prior \(model\.prior\) is under the {FAIR}"):
        about.check(public(licensed, tmp_path))
    about.check(public(licensed, tmp_path, source_url=SOURCE))
    about.check(public(licensed, tmp_path, licence="MIT"))
    about.check(recipe_of(licensed, tmp_path / "run"))  # on loopback nobody is served over a network


def test_a_public_server_must_know_the_licence(part: ModelPart, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"about\.licence: prior \(model\.prior\) does not say its licence"):
        about.check(public(part, tmp_path))
    about.check(public(part, tmp_path, licence="MIT"))
    with pytest.raises(UserError, match=r"about\.source_url"):
        about.check(public(part, tmp_path, licence=FAIR))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.prior: .* is neither a path here nor known by key"):
        About.of(recipe_of(ModelPart(prior=str(tmp_path / "nowhere")), tmp_path / "run"))


def test_the_defaults_are_those_of_a_request_by_its_own_names(part: ModelPart, tmp_path: Path) -> None:
    told = About.of(recipe_of(part, tmp_path / "run")).document()
    request = GenerateRequest.model_validate({"prompt": "x"} | told["defaults"], strict=True)
    assert request.model_dump(include=told["defaults"].keys(), mode="json") == told["defaults"]
    for name, ends in told["ranges"].items():
        assert name in GenerateRequest.model_fields
        if name in told["defaults"]:
            assert ends["min"] <= told["defaults"][name] <= ends["max"]


def test_the_form_offers_only_what_the_limits_allow(part: ModelPart, tmp_path: Path) -> None:
    limits = LimitsPart(max_pixels=1024 * 768, max_images=2)
    defaults = DefaultsPart(width=512, height=512)
    told = About.of(recipe_of(part, tmp_path / "run", limits=limits, defaults=defaults)).document()
    assert {size["name"] for size in told["sizes"]} == {"square", "portrait_4_3", "landscape_4_3"}
    assert told["ranges"]["num_images"] == {"min": 1, "max": 2}
    assert told["ranges"]["first_stage_steps"] == {"min": 4, "max": 50}  # fal's
    assert {"name": "euler_a", "label": "Euler a"} in told["samplers"]
    assert [profile["name"] for profile in told["profiles"]] == ["comfy", "diffusers"]


def test_pictures_are_taken_where_there_is_an_encoder(part: ModelPart, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "prior", tmp_path / "prior")
    model = ModelPart(prior=str(tmp_path / "prior"), decoder=part.decoder)
    plain = About.of(recipe_of(model, tmp_path / "run")).document()
    encoder = tmp_path / "prior" / "effnet_encoder.safetensors"
    shutil.copy(weights / "prior" / "prior" / "diffusion_pytorch_model.safetensors", encoder)
    shutil.rmtree(tmp_path / "prior" / "image_encoder")
    other = About.of(recipe_of(model, tmp_path / "run")).document()
    assert (plain["takes_pictures"], plain["takes_variations"]) == (False, True)
    assert (other["takes_pictures"], other["takes_variations"]) == (True, False)


def test_the_ingress_says_it_all_without_loading_torch(part: ModelPart, tmp_path: Path) -> None:
    recipe = tmp_path / "serve.toml"
    recipe.write_text(f'run = "{tmp_path}/run"\n[model]\nprior = "{part.prior}"\ndecoder = "{part.decoder}"\n')
    code = (
        "import sys; from pathlib import Path; from sote.cluster import recipe; from sote.serve.about import About;"
        "from sote.serve.recipe import ServeRecipe; from sote.serve import access, desk, keys;"
        f"About.of(recipe.load(Path({str(recipe)!r}), ServeRecipe)).document();"
        "print(sorted({'torch', 'ray', 'transformers', 'onnxruntime'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
