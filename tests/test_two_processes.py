"""Two processes train and score as one does, and neither outlives the other."""

import json

import numpy as np
import pytest

from tests.warm_process import run_python


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    done = run_python(["-m", "tests.two_processes", str(tmp_path_factory.mktemp("two"))], timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_learn_what_one_learns_from_twice_the_batch(found: dict) -> None:
    """On a network without batch norm, on crops with padding, so that processes have different counts of pixels."""
    assert found["double_batch"]["codes"] == [0, 0, 0]
    assert found["double_batch"]["difference"] < 1e-6


def test_they_score_three_images_alike(found: dict) -> None:
    one, two = found["double_batch"]["scores"]
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    assert {name: value for name, value in one.items() if name != "loss"} == {
        name: value for name, value in two.items() if name != "loss"
    }


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(found: dict, victim: int) -> None:
    one = found[f"killed{victim}"]
    assert one["codes"][victim] == -9
    assert one["codes"][1 - victim] == 1
    assert one["seconds"] < 60
    assert f"rank {1 - victim} lost the connection to another rank" in one["last_line"]
    assert "last.ckpt is whole, and the same command goes on from there" in one["last_line"]


def test_sharded_weights_learn_what_whole_ones_do(found: dict) -> None:
    """Three steps at a high rate: each rank alone would have gone elsewhere."""
    sharded = found["sharded"]
    assert sharded["codes"] == [0] * 8
    assert sharded["names"]
    assert sharded["difference"] < 1e-3
    one, two = sharded["shards"]
    assert one["sums"] == two["sums"]
    assert one["share"] < 0.7
    assert two["share"] < 0.7
    assert sharded["predictions"]
    ddp, fsdp2 = sharded["scores"]
    assert fsdp2["loss"] == pytest.approx(ddp["loss"], rel=1e-2)


def test_sharded_weights_resume_to_the_same_bits(found: dict) -> None:
    assert found["sharded"]["resumed"] == []


def test_a_vit_trains_under_a_head_that_reads_one_level(found: dict) -> None:
    """Levels that no gradient reaches would end DDP at the second step."""
    crf = found["sharded_crf"]
    assert crf["codes"][:2] == [0, 0], crf["logs"]["ddp"][-2000:]


def test_a_crf_is_learned_with_sharded_weights(found: dict) -> None:
    crf = found["sharded_crf"]
    assert crf["codes"] == [0] * 4, crf["logs"]["fsdp2"][-2000:]
    ddp, fsdp2 = crf["learnt"]
    assert ddp.keys() == fsdp2.keys()
    assert ddp
    for name, value in ddp.items():
        np.testing.assert_allclose(fsdp2[name], value, rtol=1e-3, atol=1e-5)
    assert "Warning" not in crf["logs"]["fsdp2"]


def test_killed_and_resumed_they_end_with_the_same_bits(found: dict) -> None:
    assert found["trial"]["kills"] > 0, found["trial"]["ways"]
    assert found["trial"]["differences"] == [], found["trial"]["ways"]
