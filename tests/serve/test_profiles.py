import pytest

from sote.serve import profiles, schedules


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_profile_names_only_what_there_is(name: profiles.Profile) -> None:
    fixed = profiles.PROFILES[name]
    assert {fixed.prior_scheduler, fixed.decoder_scheduler} <= set(schedules.SCHEDULERS)
    assert set(fixed.samplers) <= set(schedules.SAMPLERS)
    assert min(fixed.prior_shift, fixed.decoder_shift) > 0


def test_comfyui_shifts_the_prior_alone_and_stacks_windows() -> None:
    fixed = profiles.PROFILES["comfy"]
    assert (fixed.prior_shift, fixed.decoder_shift) == (2.0, 1.0)
    assert (fixed.layout, fixed.noise, fixed.mask_padding, fixed.samplers) == ("stacked", "batch", True, ())


def test_diffusers_has_one_sampler_on_the_plain_grid() -> None:
    fixed = profiles.PROFILES["diffusers"]
    assert (fixed.prior_scheduler, fixed.decoder_scheduler) == ("wuerstchen", "wuerstchen")
    assert (fixed.prior_shift, fixed.decoder_shift) == (1.0, 1.0)
    assert (fixed.layout, fixed.noise, fixed.mask_padding, fixed.samplers) == ("cut", "chain", True, ("ddpm",))
