"""The reader: what is written in a picture, asked of LLaVA. Run on pictures tagged english_text only.

Writes: read_text (the answer word for word); what is accepted of it as `text` is decided by `reading.accept`.
The prompt is the seed author's, letter for letter; the model card's own has other capitals.
Shape suffixes: B pictures of the batch, T tokens, CHW colour, height, width (float32, prepared).

Kind: actor.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging as transformers_logging

from sote.cluster.devices import Device
from sote.cluster.errors import WeightsError
from sote.data.fitting import Pieces
from sote.data.pretrained import check_loaded, needed, one_line, pick_named
from sote.data.reading import QUESTION, Unread

# text-llava15-7b.py, 2024-04-22 to 2024-06-27
PROMPT = f"<image>\nuser: {QUESTION}\nassistant:"
FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
# What transformers raises for a folder that holds another model or a broken file
UNFIT = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)

Picture = NDArray[np.float32]


class Reader:
    """LLaVA 1.5 of one folder (layout of llava-hf/llava-1.5-7b-hf), ready to use.

    float16 on an accelerator, as the author ran it (14 GB for 7B, and 0.35 GB for each of the `rows` pictures that are
    read together); float32 on the CPU (28 GB).
    """

    def __init__(self, folder: Path, *, max_new_tokens: int, rows: int = 1, device: Device | str | None = None) -> None:
        needed(folder, *FILES)
        self.device, name = pick_named(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        self.max_new_tokens, self._rows, self._pieces = max_new_tokens, rows, Pieces(rows)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the run has its own
        try:
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, dtype=self.dtype, use_safetensors=True, output_loading_info=True
            )
            model, report = loaded
            self._processor = _processor(folder, model.config)
        except UNFIT as error:
            raise WeightsError(f"{folder}: is not a LlavaForConditionalGeneration folder ({one_line(error)})") from None
        check_loaded(folder, report)
        _check_tokens(folder, self._processor, model.config.image_token_id)
        self._model = model.eval().requires_grad_(False).to(self.device)
        asked = self._processor(images=[Image.new("RGB", (1, 1))], text=[PROMPT], return_tensors="pt")
        self._prompt_T = asked["input_ids"][0].to(self.device)
        self.facts: dict[str, str | float] = {
            "stage": "text",
            "device": name,
            "engine": "torch",
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def prepare(self, image: Image.Image) -> Picture:
        """What the model sees of a picture of any size; needs no device and may run in any thread."""
        prepared = self._processor.image_processor(images=[image.convert("RGB")], return_tensors="np")
        picture_CHW: Picture = np.asarray(prepared["pixel_values"][0], np.float32)
        return picture_CHW

    def answers(self, pictures: Iterable[Picture | Unread]) -> Iterator[str | Unread]:
        """The answer for each prepared picture, without the prompt, as it is ready; what is Unread is passed on.

        They are read in batches that are cut at every `rows`-th place, whatever stands there, so that a run that is
        continued reads the same batches again.
        """
        coming = iter(pictures)
        while batch := list(itertools.islice(coming, self._rows)):
            at_hand = [picture for picture in batch if not isinstance(picture, Unread)]
            said = iter(self._pieces.run(self._say, np.stack(at_hand)) if at_hand else ())
            yield from (picture if isinstance(picture, Unread) else str(next(said)) for picture in batch)

    def read(self, images: Sequence[Image.Image]) -> list[str | Unread]:
        """The answer for each picture (any size; made RGB)."""
        return list(self.answers(map(self.prepare, images)))

    @torch.inference_mode()
    def _say(self, pictures_BCHW: Picture) -> NDArray[np.object_]:
        """Greedy, so that it can be repeated. All prompts are equally long, so nothing is padded."""
        prompts_BT = self._prompt_T.repeat(len(pictures_BCHW), 1)
        tokens_BT = self._model.generate(
            input_ids=prompts_BT,
            attention_mask=torch.ones_like(prompts_BT),
            pixel_values=torch.from_numpy(pictures_BCHW).to(self.device, self.dtype),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
        )
        answers_BT = tokens_BT[:, prompts_BT.shape[1] :]
        return np.array(self._processor.tokenizer.batch_decode(answers_BT, skip_special_tokens=True), object)


def _check_tokens(folder: Path, processor: LlavaProcessor, image_token: int) -> None:
    """The tokenizer has the model's <image>, and puts the token of the beginning first, as LLaMA was trained."""
    if processor.image_token_id != image_token:
        raise WeightsError(
            f"{folder}: the tokenizer has <image> as {processor.image_token_id}, the model as {image_token}"
        )
    tokenizer = processor.tokenizer
    if tokenizer(PROMPT)["input_ids"][0] != tokenizer.bos_token_id:
        raise WeightsError(f"{folder}: its tokenizer does not begin a prompt with {tokenizer.bos_token}")


def _processor(folder: Path, config: Any) -> LlavaProcessor:
    """Tokenizer and picture preparation. How many tokens a picture takes is computed from the model's own config:

    older folders lack it in their processor_config.json. The Pillow class is named, because the torchvision one
    resizes differently. A CLIP tower has one token more than patches, its class token.
    """
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
