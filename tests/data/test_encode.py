import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import efficientnet_v2_s

from sote.cluster.errors import WeightsError
from sote.data import encode
from sote.data.encode import PUBLISHED, EfficientNetEncoder, Encoder, Plan, plan_of, stage_of

SMALL = Plan(
    stem=4,
    stages=(
        stage_of(4, expand=1, stride=1, width_out=4, blocks=2, squeeze=False),
        stage_of(4, expand=4, stride=2, width_out=6, blocks=1, squeeze=False),
        stage_of(6, expand=2, stride=2, width_out=8, blocks=2, squeeze=False),
        stage_of(8, expand=2, stride=2, width_out=8, blocks=2, squeeze=True),
        stage_of(8, expand=3, stride=1, width_out=12, blocks=1, squeeze=True),
        stage_of(12, expand=2, stride=2, width_out=16, blocks=2, squeeze=True),
    ),
    head=20,
)


def write_encoder(folder: Path, plan: Plan = SMALL) -> Path:
    torch.manual_seed(0)
    net = EfficientNetEncoder(plan)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / encode.FILE, {"format": "pt"})
    return folder


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_the_published_encoder_has_torchvisions_names_and_shapes_and_says_the_same_bit_for_bit() -> None:
    torch.manual_seed(1)
    reference = efficientnet_v2_s(weights=None).features.eval()
    ours = EfficientNetEncoder(PUBLISHED).eval()
    assert list(shapes(ours.backbone).items()) == list(shapes(reference).items())
    assert len(ours.backbone.state_dict()) == 780  # Stability's effnet_encoder: 784 with the mapper
    assert set(shapes(ours)) - {f"backbone.{name}" for name in shapes(reference)} == {
        "mapper.0.weight",
        "mapper.1.running_mean",
        "mapper.1.running_var",
        "mapper.1.num_batches_tracked",
    }
    # 20,197,968 parameters: counted on Stability's class
    assert sum(parameter.numel() for parameter in ours.parameters()) == 20_197_968
    ours.backbone.load_state_dict(reference.state_dict(), strict=True)
    pixels_BCHW = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(ours.backbone(pixels_BCHW), reference(pixels_BCHW))


def test_the_plan_is_read_from_the_shapes_alone() -> None:
    with torch.device("meta"):
        assert plan_of(shapes(EfficientNetEncoder(PUBLISHED))) == PUBLISHED
        assert plan_of(shapes(EfficientNetEncoder(SMALL))) == SMALL


def test_latents_are_a_thirtysecond_of_the_picture_and_of_the_dtype_asked_for(tmp_path: Path) -> None:
    encoder = Encoder(write_encoder(tmp_path), dtype="float16", device="cpu")
    latents = encoder.encode(np.zeros((2, 64, 96, 3), np.uint8))
    assert latents.shape == (2, 16, 2, 3)
    assert latents.dtype == torch.float16
    assert encoder.sha256 == hashlib.sha256((tmp_path / encode.FILE).read_bytes()).hexdigest()


def test_pixels_are_normalised_as_imagenet_and_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    encoder = Encoder(write_encoder(tmp_path) / encode.FILE, dtype="float32", device="cpu")
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    net = EfficientNetEncoder(SMALL).eval()
    net.load_state_dict(load_file(tmp_path / encode.FILE))
    # ImageNet's mean and standard deviation, on pixels of 0..1
    normal = (pixels_BHWC / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = net(torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder.encode(pixels_BHWC), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.encode(pixels_BHWC[1:2]), encoder.encode(pixels_BHWC)[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.4.1.block.2.fc2.bias"), r"lacks backbone\.4\.1\.block\.2\.fc2\.bias"),
        (lambda t: t.pop("mapper.0.weight"), r"lacks mapper\.0\.weight \(1 of"),
        (lambda t: t.update(extra=torch.zeros(1)), "has extra, which does not belong here"),
        (
            lambda t: t.update({"mapper.0.weight": torch.zeros(8, 20, 1, 1)}),
            r"\(8, 20, 1, 1\), expected \(16, 20, 1, 1\)",
        ),
        (lambda t: t["backbone.7.0.weight"].fill_(float("nan")), r"backbone\.7\.0\.weight holds numbers that are not"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("backbone.3.")], "stage backbone.3 is missing"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("backbone.0.")],
            "is not an EfficientNet encoder",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, change: object, message: str) -> None:
    file = write_encoder(tmp_path) / encode.FILE
    tensors = load_file(file)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=message) as error:
        Encoder(file, dtype="float32", device="cpu")
    assert "\n" not in str(error.value)


def test_an_encoder_of_the_published_width_with_a_block_less_is_refused(tmp_path: Path) -> None:
    less = Plan(PUBLISHED.stem, (*PUBLISHED.stages[:5], PUBLISHED.stages[5][:-1]), PUBLISHED.head)
    with pytest.raises(WeightsError, match="but not its blocks"):
        Encoder(write_encoder(tmp_path, less), dtype="float32", device="cpu")


def test_an_encoder_inside_a_file_of_several_models_is_read_by_its_prefix(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    inside = {f"vae.encoder.{name}": tensor for name, tensor in load_file(folder / encode.FILE).items()}
    path = tmp_path / "several.safetensors"
    save_file(inside | {"model.diffusion_model.clf.1.bias": torch.zeros(4)}, path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    one = Encoder(folder, dtype="float32", device="cpu")
    other = Encoder(path, dtype="float32", device="cpu", prefix="vae.encoder.")
    torch.testing.assert_close(one.encode(pixels), other.encode(pixels))
    assert (one.sha256, other.sha256) == (encode.sha256_of(folder / encode.FILE), encode.sha256_of(path))


def test_a_missing_or_truncated_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        Encoder(tmp_path, dtype="float32")
    file = write_encoder(tmp_path) / encode.FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"effnet_encoder\.safetensors: cannot be read as safetensors"):
        Encoder(file, dtype="float32")
