"""The recipes of `sote demo --quick` and `sote demo --images`: stand-ins of every model, twenty steps.

Kind: wiring.
"""

from pathlib import Path

from sote.cluster.errors import SourceError
from sote.cluster.storage import RunFolder
from sote.data import recipe as curating
from sote.serve import recipe as serving
from sote.train import recipe as training

PROMPT = "newest, extremely aesthetic, best quality, general, red circle, blue background"
NEGATIVE_PROMPT = "very displeasing, worst quality, oldest"
NOTE = "The miniature decoder was never trained, so it paints noise: the way is real, the skill is not."
SEED = 7
SIDE = 512  # pixels of buckets and of the painted picture: sixteen latent cells at compression 32
COMPRESSION = 32.0


def curate_recipe(root: Path, images: Path | None) -> curating.CurateRecipe:
    """The recipe of the demo's curation. Own pictures of any size are welcome; drawn ones keep the seed's smallest."""
    if images is None:
        board = curating.Source(name="board", kind="image board", path=str(root / "pictures" / "board"))
        pixiv = curating.Source(name="pixiv", kind="pixiv", path=str(root / "pictures" / "pixiv"))
        sources: tuple[curating.Source, ...] = (board, pixiv)
        decode = curating.DecodePart()
    else:
        if not images.is_dir():
            raise SourceError(f"--images: no such folder: {images}")
        sources = (curating.Source(name="pictures", kind="plain", path=str(images.resolve())),)
        decode = curating.DecodePart(min_pixels=SIDE * SIDE // 4)
    models = root / "weights"
    return curating.CurateRecipe(
        run=str(root),
        sources=sources,
        shard_rows=16,
        slice_rows=8,
        decode=decode,
        score=curating.ScorePart(
            aesthetic=str(models / "aesthetic"),
            quality_clip=str(models / "quality_clip"),
            quality_head=str(models / "quality_head"),
        ),
        tag=curating.TagPart(tagger=str(models / "tagger")),
        text=curating.TextPart(reader=str(models / "reader")),
        latents=curating.LatentsPart(encoder=str(models / "encoder"), resolution=SIDE, compression=COMPRESSION),
        work=curating.WorkPart(max_failed_share=0.5),
    )


def train_recipe(root: Path) -> training.TrainRecipe:
    """Twenty steps on two CPU workers; the learning rates are the miniature's, not the seed's."""
    return training.TrainRecipe(
        run=str(root),
        data=training.DataPart(curated=str(root)),
        model=training.ModelPart(prior=str(root / "weights" / "prior")),
        optimizer=training.OptimizerPart(
            prior_learning_rate=3e-4, text_encoder_learning_rate=1e-4, warmup_steps=5, gradient_clipping=1.0
        ),
        batch=training.BatchPart(effective_batch=8, micro_batch=2),
        length=training.LengthPart(max_steps=20),
        workers=training.WorkersPart(count=2),
        checkpoint=training.CheckpointPart(every_steps=10),
        samples=training.SamplesPart(
            every_steps=5,
            prompts=(PROMPT,),
            negative_prompt=NEGATIVE_PROMPT,
            seed=SEED,
            width=SIDE // 2,
            height=SIDE // 2,
            steps=8,
        ),
        export=training.ExportPart(
            name="sote-demo",
            decoder=str(root / "weights" / "decoder"),
            encoder=str(root / "weights" / "encoder" / "effnet_encoder.safetensors"),
        ),
    )


def serve_recipe(root: Path, *, port: int) -> serving.ServeRecipe:
    """The exported prior and the stand-in decoder behind one endpoint."""
    exported = RunFolder(root).export("diffusers")
    return serving.ServeRecipe(
        run=str(root),
        port=port,
        model=serving.ModelPart(
            prior=str(exported / "prior"),
            decoder=str(exported / "decoder"),
            encoder=str(root / "weights" / "encoder" / "effnet_encoder.safetensors"),
            image_encoder=str(root / "weights" / "prior" / "image_encoder"),
            name="sote-demo",
        ),
        defaults=serving.DefaultsPart(
            width=SIDE, height=SIDE, compression=COMPRESSION, prior_steps=10, decoder_steps=5, prior_guidance=4.0
        ),
    )
