from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sote.data import pass_latents


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_latent_file_is_a_safetensors_file_with_what_made_it(tmp_path: Path, dtype: str) -> None:
    latents = torch.arange(2 * 16 * 3 * 5, dtype=torch.float32).reshape(2, 16, 3, 5).to(getattr(torch, dtype))
    data = latents.view(torch.uint8).numpy().tobytes()
    facts = {"format": pass_latents.FORMAT, "ids": '["a", "b"]'}
    path = tmp_path / "00000.safetensors"
    path.write_bytes(pass_latents.latent_file(data, dtype=dtype, shape=[2, 16, 3, 5], facts=facts))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == facts
        assert torch.equal(file.get_tensor("latents"), latents)
        assert torch.equal(file.get_slice("latents")[1], latents[1])


def test_the_same_latents_give_the_same_bytes_in_the_order_that_the_facts_are_given() -> None:
    data = np.zeros((1, 16, 2, 2), np.float16).tobytes()
    facts = {f"name{number}": str(number) for number in range(20)}
    one, two = (
        pass_latents.latent_file(data, dtype="float16", shape=[1, 16, 2, 2], facts=dict(facts)) for _ in range(2)
    )
    assert one == two
    places = [one.index(name.encode()) for name in facts]
    assert places == sorted(places)
    assert (len(one) - len(data)) % 8 == 0


def test_cells_are_pixels_over_compression() -> None:
    assert pass_latents.latent_cells(1024, 32.0) == 32
    assert pass_latents.latent_cells(1024, 42.67) == 24  # Stability's published pair
