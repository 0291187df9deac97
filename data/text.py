"""The reader: what is written in a picture, asked of LLaVA. Run on pictures tagged english_text only.

Writes: read_text (the answer word for word); what is accepted of it as `text` is decided by `reading.accept`.
The prompt is the seed author's, letter for letter; the model card's own has other capitals.

Kind: actor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging as transformers_logging

from sote.cluster.errors import WeightsError
from sote.data.pretrained import check_loaded, needed, one_line, pick_device

# text-llava15-7b.py, 2024-04-22 to 2024-06-27
PROMPT = "<image>\nuser: what does the text say?\nassistant:"
FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
# What transformers raises for a folder that holds another model or a broken file
UNFIT = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


class Reader:
    """LLaVA 1.5 of one folder (layout of llava-hf/llava-1.5-7b-hf), ready to use.

    float16 on an accelerator, as the author ran it (14 GB for 7B); float32 on the CPU (28 GB).
    """

    def __init__(self, folder: Path, *, max_new_tokens: int, device: str | None = None) -> None:
        needed(folder, *FILES)
        self.device = pick_device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        self.max_new_tokens = max_new_tokens
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

    @torch.inference_mode()
    def read(self, images: Sequence[Image.Image]) -> list[str]:
        """The answer for each picture (any size; made RGB), without the prompt. Greedy, so that it can be repeated.

        All prompts are equally long, so nothing is padded and an answer does not depend on its neighbours.
        """
        if not images:
            return []
        asked = self._processor(
            images=[image.convert("RGB") for image in images], text=[PROMPT] * len(images), return_tensors="pt"
        ).to(self.device, self.dtype)
        tokens_BT = self._model.generate(**asked, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        answers_BT = tokens_BT[:, asked["input_ids"].shape[1] :]
        return list(self._processor.tokenizer.batch_decode(answers_BT, skip_special_tokens=True))


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
