"""The two scorers: aesthetic (a ViT over the whole, squashed picture) and quality (CLIP features and a small head).

Reads: aesthetic_input, quality_input. Writes: aesthetic_score, aesthetic_logit, quality_score, quality_logit,
score_error. The image towers compute in the recipe's dtype. What follows them (the ViT's classifier, each row's norm,
the head, softmax and sigmoid) is float32 always: scores saturate near 1, where 16-bit numbers cannot tell them apart.
float32 is IEEE's on every device: TF32, which rounds to ten bits and which cuDNN takes by itself, is off. Kernels for
narrower or compiled towers round otherwise for another number of rows, so these always run the same number, filled up:
a row's scores do not depend on the batch that it comes in.
Shape suffixes: B rows of the batch, F features, L labels, T tokens, HWC height, width, colour (uint8 RGB).

Kind: actor.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sote.cluster.devices import Device
from sote.data import gate
from sote.data.fitting import Pieces
from sote.data.pretrained import compiled, exact_float32, pick_named
from sote.data.recipe import CurateRecipe, ScorePart
from sote.data.score_files import (
    aesthetic_preparation,
    load_head,
    load_tower,
    load_vit,
    quality_preparation,
)
from sote.data.score_files import aesthetic_size as aesthetic_size
from sote.data.score_files import quality_side as quality_side

MODELS = ("aesthetic", "quality")
WHOLE = 1 << 16  # rows: more than any slice has, so that one runs whole until memory runs out
AS_PUBLISHED, SLICE_ROWS = ScorePart(), int(CurateRecipe.model_fields["slice_rows"].default)  # the recipe's defaults

Batch = dict[str, NDArray[Any]]


class Scorer:
    """Both scorers, ready to use: two folders, and the head as a file or a folder that holds aes-B32-v0.pth.

    `rows` is the batch that will come. `facts` say where and in what numbers it computes, and how far the scores of a
    fixed sample lie from those of plain float32 on the same device. Raises WeightsError for files that do not fit, and
    RunFailed where that difference is above `part.max_difference` or the towers cannot be compiled.
    """

    def __init__(
        self,
        aesthetic: Path,
        quality_clip: Path,
        quality_head: Path,
        *,
        part: ScorePart = AS_PUBLISHED,
        rows: int = SLICE_ROWS,
        device: Device | str | None = None,
    ) -> None:
        self.device, name = pick_named(device)
        self._prepare = {"aesthetic": aesthetic_preparation(aesthetic), "quality": quality_preparation(quality_clip)}
        vit, self._good = load_vit(aesthetic)
        tower, features = load_tower(quality_clip)
        head = load_head(quality_head, features=features)
        for module in (vit, tower, head):
            module.eval().requires_grad_(False).to(self.device)
        self._classifier, self._head = vit.classifier, head
        self._towers: dict[str, Any] = {"aesthetic": vit.vit, "quality": tower}
        self._dtype = torch.float32
        self._pieces = {name: Pieces(WHOLE) for name in MODELS}
        self.facts: dict[str, str | float] = {
            "stage": "score",
            "device": name,
            "engine": "torch",
            "dtype": part.dtype,
            "compile": part.compile,
            "max_difference": self._changed_to(part, rows),
        }

    def __call__(self, batch: Batch) -> Batch:
        """Batch with `aesthetic_input`, `quality_input` (uint8 RGB [B,H,W,3]) and `sound` bool [B] -> the batch

        without the pictures and with float32 [B] `aesthetic_score`, `aesthetic_logit`, `quality_score`,
        `quality_logit` (NaN where there is none) and `score_error` (str or null).
        """
        out = {name: values for name, values in batch.items() if name not in ("aesthetic_input", "quality_input")}
        sound = batch["sound"].astype(bool)
        logits = {name: np.full(len(sound), np.nan, np.float32) for name in MODELS}
        if sound.any():
            logits = self._logits(batch["aesthetic_input"], batch["quality_input"])
        finite = np.isfinite(logits["aesthetic"]) & np.isfinite(logits["quality"])
        for name in MODELS:
            logits_B = np.where(sound & finite, logits[name], np.float32("nan"))
            out[f"{name}_logit"] = logits_B
            out[f"{name}_score"] = _sigmoid(logits_B)
        out["score_error"] = np.full(len(sound), None, object)
        out["score_error"][sound & ~finite] = "score: not finite"
        return out

    @torch.inference_mode()
    def aesthetic_logits(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """logit(hq) - logit(lq) [B]; its sigmoid is the softmax probability of hq."""
        with exact_float32():
            tokens_BTF = self._towers["aesthetic"](self._pixels("aesthetic", pixels_BHWC)).last_hidden_state
            logits_BL = self._classifier(tokens_BTF[:, 0].float())
            return _numbers(logits_BL[:, self._good] - logits_BL[:, 1 - self._good])

    @torch.inference_mode()
    def quality_logits(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logit [B] of the head on image features that each have norm 1: per row, not over the batch."""
        with exact_float32():
            features_BF = self._towers["quality"](self._pixels("quality", pixels_BHWC)).float()
            return _numbers(self._head(features_BF / features_BF.norm(dim=1, keepdim=True)))

    def _logits(self, aesthetic_BHWC: NDArray[np.uint8], quality_BHWC: NDArray[np.uint8]) -> Batch:
        return {
            "aesthetic": self._pieces["aesthetic"].run(self.aesthetic_logits, aesthetic_BHWC),
            "quality": self._pieces["quality"].run(self.quality_logits, quality_BHWC),
        }

    def _pixels(self, model: str, pixels_BHWC: NDArray[np.uint8]) -> torch.Tensor:
        return self._prepare[model](pixels_BHWC, self.device).to(self._dtype)

    def _changed_to(self, part: ScorePart, rows: int) -> float:
        """Bring the towers to the recipe's dtype and compile them; the largest difference of the sample's scores."""
        if part.dtype == "float32" and not part.compile:
            return 0.0
        exact = self._sample_scores()
        self._pieces = {name: Pieces(rows, fill=True) for name in MODELS}
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[part.dtype]
        for name in MODELS:
            self._towers[name] = self._towers[name].to(self._dtype)
        if part.compile:
            with compiled(self._towers, self.device, field="score.compile"):
                found = self._sample_scores()
        else:
            found = self._sample_scores()
        what = f"score: {part.dtype}{' compiled' if part.compile else ''} on {self.device}"
        return gate.difference(found, exact, limit=part.max_difference, what=what)

    def _sample_scores(self) -> NDArray[np.float32]:
        aesthetic, quality = (gate.sample(width=each.width, height=each.height) for each in self._prepare.values())
        return np.stack([_sigmoid(logits_B) for logits_B in self._logits(aesthetic, quality).values()])


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(torch.sigmoid(torch.from_numpy(logits)).numpy(), np.float32)


def _numbers(values_B: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(values_B.float().cpu().numpy(), np.float32)
