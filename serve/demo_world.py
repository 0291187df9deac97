"""The recipes of `sote demo`: the small world's trained models, fresh pictures, a new concept, and its control.

Kind: pure.
"""

from pathlib import Path

from sote.cluster.storage import RunFolder
from sote.data import recipe as curating
from sote.data import scenes, world, world_prompts
from sote.serve import recipe as serving
from sote.train import recipe as training

PICTURES, PICTURES_SEED = 480, 2_026
CONCEPT_SHARE = 1 / 6  # of the pictures
COMPRESSION = 42.67  # 256 pixels are 6 x 6 cells
STEPS = 320
SAMPLES_EVERY = 80  # steps
EMA_DECAY = 0.98  # a mean of some fifty steps; the weights of a single one forget more of what the base knew
NAMED = 6  # tags that open a caption: four of scores, date and rating, then who and from where
CONTROL = "control"  # its run folder below the demo's
SHUFFLED = "shuffled"  # the control's data, below the demo's run folder
SHOWN = (0, 16)  # prompts that are painted while it trains, beside one of the concept


def scene(seed: int, index: int) -> world.Scene:
    """A scene of the demo: one in six shows the concept."""
    return world.plan(seed, index, concept_share=CONCEPT_SHARE)


def draw(folder: Path) -> None:
    """The demo's pictures, drawn by two processes."""
    scenes.draw(folder, count=PICTURES, seed=PICTURES_SEED, of=scene, processes=2)


def curate_recipe(root: Path) -> curating.CurateRecipe:
    """Board and pixiv posts of the small world, looked at by its own models. Text is not read: the reader is random."""
    pictures, models = root / "pictures", root / "weights"
    board = curating.Source(name="board", kind="image board", path=str(pictures / "board"))
    pixiv = curating.Source(name="pixiv", kind="pixiv", path=str(pictures / "pixiv"), sidecar_tags=True)
    return curating.CurateRecipe(
        run=str(root),
        sources=(board, pixiv),
        shard_rows=120,
        slice_rows=40,
        decode=curating.DecodePart(min_pixels=40_000),
        score=curating.ScorePart(
            aesthetic=str(models / "aesthetic"),
            quality_clip=str(models / "quality_clip"),
            quality_head=str(models / "quality_head"),
        ),
        tag=curating.TagPart(tagger=str(models / "tagger")),
        select=curating.SelectPart(best_repeat=1),
        latents=curating.LatentsPart(encoder=str(models / "encoder"), resolution=world.SIDE, compression=COMPRESSION),
        work=curating.WorkPart(max_failed_share=0.5),
    )


def train_recipe(root: Path, *, on_gpu: bool = False) -> training.TrainRecipe:
    """Stage C and its text encoder learn the concept on two CPU workers, or on one GPU."""
    asked = world_prompts.prompts()
    shown = [asked[at].prompt for at in SHOWN] + [next(each.prompt for each in asked if each.is_concept)]
    models = root / "weights"
    return training.TrainRecipe(
        run=str(root),
        data=training.DataPart(curated=str(root)),
        model=training.ModelPart(prior=str(models / "prior")),
        # a name learns what it stands for where the tags of its looks are missing
        captions=training.CaptionsPart(dropout=0.1, tag_dropout=0.6, keep_first=NAMED),
        optimizer=training.OptimizerPart(
            name="adamw",
            prior_learning_rate=5e-4,
            text_encoder_learning_rate=5e-4,
            warmup_steps=10,
            betas=(0.9, 0.99),
        ),
        ema=training.EmaPart(decay=EMA_DECAY),
        batch=training.BatchPart(effective_batch=32, micro_batch=16),
        length=training.LengthPart(max_steps=STEPS),
        workers=training.WorkersPart(count=1, use_gpu=True)
        if on_gpu
        else training.WorkersPart(count=2, precision="float32"),
        checkpoint=training.CheckpointPart(every_steps=STEPS),
        samples=training.SamplesPart(
            every_steps=SAMPLES_EVERY,
            prompts=tuple(shown),
            negative_prompt=world_prompts.NEGATIVE_PROMPT,
            seed=world_prompts.SEED,
            width=world.SIDE,
            height=world.SIDE,
        ),
        export=training.ExportPart(
            name="sote-demo",
            ema=True,
            decoder=str(models / "decoder"),
            encoder=str(models / "encoder" / "effnet_encoder.safetensors"),
        ),
    )


def control_recipe(recipe: training.TrainRecipe) -> training.TrainRecipe:
    """The same training on the same pictures, each with another's caption."""
    root = Path(recipe.run)
    run = root / CONTROL
    return recipe.model_copy(
        update={
            "run": str(run),
            "data": training.DataPart(curated=str(root / SHUFFLED)),
            "samples": None,
            "export": recipe.export.model_copy(update={"name": "sote-demo-control"}),
        }
    )


def defaults() -> serving.DefaultsPart:
    """How the small world is painted."""
    return serving.DefaultsPart(
        negative_prompt=world_prompts.NEGATIVE_PROMPT,
        width=world.SIDE,
        height=world.SIDE,
        compression=COMPRESSION,
        prior_steps=20,
        prior_guidance=3.0,  # this and the decoder's: chosen on 200 prompts that are not those of the measure
        prior_scheduler="simple",
        prior_shift=1.0,
        decoder_guidance=1.4,
        decoder_steps=10,
        decoder_scheduler="karras",
    )


def model(root: Path, prior: Path) -> serving.ModelPart:
    """A prior's folder with the small world's decoder."""
    weights = root / "weights"
    return serving.ModelPart(
        prior=str(prior),
        decoder=str(weights / "decoder"),
        encoder=str(weights / "encoder" / "effnet_encoder.safetensors"),
        image_encoder=str(weights / "prior" / "image_encoder"),
        name="sote-demo",
    )


def serve_recipe(root: Path, *, port: int) -> serving.ServeRecipe:
    """The finetuned prior behind one endpoint."""
    part = model(root, RunFolder(root).export("diffusers") / "prior")
    return serving.ServeRecipe(run=str(root), port=port, model=part, defaults=defaults())
