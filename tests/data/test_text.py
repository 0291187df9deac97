import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from sote.cluster.errors import WeightsError
from sote.data import painting, scenes, standin_reader
from sote.data.reading import Unread, accept
from sote.data.text import PROMPT, Picture, Reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reader"
    standin_reader.make(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader(folder, max_new_tokens=12, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [painting.paint(scenes.plan(1, index), scale=0.2) for index in range(3)]


def test_answers_can_be_repeated_and_do_not_depend_on_their_neighbours(
    reader: Reader, images: list[Image.Image]
) -> None:
    together = reader.read(images)
    assert together == reader.read(images)
    assert together == [answer for image in images for answer in reader.read([image])]
    assert len(set(together)) > 1  # the picture is seen
    assert reader.read([]) == []


def test_batches_are_cut_at_the_same_places_whatever_stands_there(
    reader: Reader, folder: Path, images: list[Image.Image]
) -> None:
    one, two, three = (reader.prepare(image) for image in images)
    vanished = Unread("file vanished")
    alone = reader.read(images)
    by_two = Reader(folder, max_new_tokens=12, rows=2, device="cpu")
    assert list(by_two.answers([one, vanished, two, three, vanished])) == [alone[0], vanished, *alone[1:], vanished]
    assert list(by_two.answers([vanished])) == [vanished]


def test_answers_come_as_they_are_ready(reader: Reader, images: list[Image.Image]) -> None:
    looked_at = []

    def pictures() -> Iterator[Picture]:
        for at, image in enumerate(images):
            looked_at.append(at)
            yield reader.prepare(image)

    next(iter(reader.answers(pictures())))
    assert looked_at == [0]


def test_a_picture_is_prepared_as_the_folders_own_processor_does(
    reader: Reader, folder: Path, images: list[Image.Image]
) -> None:
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(images[0], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(reader.prepare(images[0]), theirs)
    assert reader.facts == {"stage": "text", "device": "cpu", "engine": "torch", "dtype": "float32"}


def test_an_answer_is_without_the_prompt_and_no_longer_than_asked_for(
    reader: Reader, folder: Path, images: list[Image.Image]
) -> None:
    (answer,) = reader.read(images[:1])
    assert isinstance(answer, str)
    assert "what does the text say" not in answer
    (short,) = Reader(folder, max_new_tokens=2, device="cpu").read(images[:1])
    assert isinstance(short, str)
    assert answer.startswith(short.rstrip("�"))
    assert len(short) <= 2


def test_the_authors_prompt_begins_with_the_begin_token_and_has_one_token_for_each_patch(reader: Reader) -> None:
    assert PROMPT == "<image>\nuser: what does the text say?\nassistant:"
    asked = reader._processor(images=[Image.new("RGB", (90, 50))], text=[PROMPT], return_tensors="pt")
    tokens = asked["input_ids"][0].tolist()
    assert tokens[0] == 1
    assert tokens.count(reader._processor.image_token_id) == (56 // 14) ** 2
    assert tuple(asked["pixel_values"].shape) == (1, 3, 56, 56)


def test_any_picture_can_be_read_and_random_answers_are_refused(reader: Reader) -> None:
    odd = [Image.new("L", (1, 1)), Image.new("RGBA", (300, 20)), Image.new("P", (7, 400))]
    answers = reader.read(odd)
    assert len(answers) == 3
    assert [accept(str(answer)) for answer in answers] == [None] * 3


def test_the_number_of_picture_tokens_does_not_need_a_processor_config(
    folder: Path, tmp_path: Path, reader: Reader, images: list[Image.Image]
) -> None:
    copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "processor_config.json").unlink()
    assert Reader(tmp_path / "old", max_new_tokens=12, device="cpu").read(images) == reader.read(images)


def test_a_folder_that_lacks_something_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        Reader(tmp_path / "nowhere", max_new_tokens=4)
    copytree(folder, tmp_path / "reader")
    (tmp_path / "reader" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json"):
        Reader(tmp_path / "reader", max_new_tokens=4)


def test_weights_that_lack_a_tensor_are_refused(folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "reader")
    file = tmp_path / "reader" / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match="missing keys in its weights"):
        Reader(tmp_path / "reader", max_new_tokens=4, device="cpu")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "reader")
    path = tmp_path / "reader" / "config.json"
    config = json.loads(path.read_text())
    config["image_token_index"] = 17
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="the tokenizer has <image> as 354, the model as 17"):
        Reader(tmp_path / "reader", max_new_tokens=4, device="cpu")


def test_a_tokenizer_without_a_begin_token_is_refused(folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "reader")
    path = tmp_path / "reader" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(WeightsError, match="does not begin a prompt with <s>"):
        Reader(tmp_path / "reader", max_new_tokens=4, device="cpu")
