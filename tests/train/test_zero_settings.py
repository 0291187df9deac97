from sote.train import zero_settings
from sote.train.recipe import BatchPart, WorkersPart


def test_padding_makes_any_number_of_workers_fit() -> None:
    batch = BatchPart(effective_batch=12, micro_batch=2)
    assert [zero_settings.micros_of_worker(batch, workers=workers) for workers in (1, 2, 4, 5, 9)] == [6, 3, 2, 2, 1]


def test_clipping_and_averaging_are_left_to_us() -> None:
    found = zero_settings.make(BatchPart(), WorkersPart(), workers=2)
    assert found["gradient_clipping"] == 0.0  # DeepSpeed's default of 1.0 would clip again
    assert found["gradient_allreduce_op"] == "sum"


def test_weights_are_in_bfloat16_only_where_masters_are_apart() -> None:
    for stage, precision, low in [
        (0, "bfloat16", False),
        (1, "bfloat16", True),
        (2, "bfloat16", True),
        (2, "float32", False),
    ]:
        work = WorkersPart.model_validate({"zero_stage": stage, "precision": precision})
        assert zero_settings.make(BatchPart(), work, workers=2)["bf16"]["enabled"] is low


def test_stage_2_adds_up_in_float32_and_all_stages_send_it() -> None:
    for stage in (0, 1, 2):
        found = zero_settings.make(BatchPart(), WorkersPart.model_validate({"zero_stage": stage}), workers=2)
        assert found.get("data_types") == ({"grad_accum_dtype": "fp32"} if stage == 2 else None)
        assert found["communication_data_type"] == "fp32"
