"""Pictures whose maps do not fit into memory are explained smaller, or fewer at once, and a line says so."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from experiments.explaining import room
from experiments.explaining.deconvnet import deconvnet
from experiments.explaining.examples import Example, prepared
from experiments.explaining.occlusion import occlusion
from experiments.explaining.recording import record
from experiments.explaining.room import AT_ONCE, batch_that_fits, need_of, prepared_to_record, say
from tests.explained_networks import flags_of, network_of, picture

MEBIBYTE = 1 << 20


class One:
    """A single picture."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.problems: list[str] = []

    def take(self) -> Iterator[Example]:
        from pathlib import Path

        yield Example("one", Path("one"), self.image, "", None, from_file=True)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MiB, and pictures that are looked at from 32 x 32 pixels on."""
    monkeypatch.setattr(room, "usable_memory", lambda device: 24 * MEBIBYTE)
    monkeypatch.setattr(room, "SMALL", 32 * 32)
    say.cache_clear()


def test_the_need_is_that_of_all_maps() -> None:
    network = network_of("vgg11_bn", "classifier")
    with torch.no_grad():
        recording = record(network.module.network, prepared(network, picture(96, 128))[1])
    held = {id(one): one for one in recording.outputs.values()}
    need = need_of(network.module.network, (1, 3, 96, 128))
    assert need.largest == 64 * 96 * 128 * 4
    modules = sum(one.nbytes for one in held.values())  # what functions compute comes on top
    assert modules <= need.total <= 1.3 * modules


@pytest.mark.usefixtures("small_memory")
def test_a_picture_that_needs_too_much_is_explained_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    network = network_of("vgg11", "classifier")
    (explanation,) = deconvnet(network, One(picture(192, 256)), flags_of(method="deconvnet"))
    height, width = explanation.facts["size"]
    assert height < 192
    assert height / width == pytest.approx(192 / 256, rel=0.02)
    need = need_of(network.module.network, (1, 3, height, width))
    assert need.total + AT_ONCE * need.largest == pytest.approx(24 * MEBIBYTE, rel=0.1)
    prepared_to_record(network, picture(192, 256))
    assert capsys.readouterr().out.count(f"there is room for 0.0 GiB: it is explained at {height} x {width}\n") == 1
    pixels, x = prepared_to_record(network, picture(64, 64))
    assert (pixels.shape, x.shape) == ((64, 64, 3), (1, 3, 64, 64))


@pytest.mark.usefixtures("small_memory")
def test_fewer_pictures_are_occluded_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    network = network_of("vgg11", "classifier")
    x = prepared(network, picture(96, 96))[1]
    assert batch_that_fits(network, x, 32) == 24 * MEBIBYTE // (AT_ONCE * 64 * 96 * 96 * 4) == 2
    flags = flags_of(method="occlusion", patch=48, step=48)
    (few,) = occlusion(network, One(picture(96, 96)), flags)
    assert capsys.readouterr().out.count("--batch-size 32: there is room for 2 pictures of 96 x 96 pixels at once") == 1
    room.SMALL, before = 32 * 96 * 96, room.SMALL
    (all_at_once,) = occlusion(network, One(picture(96, 96)), flags)
    room.SMALL = before
    assert few.facts["drops"] == all_at_once.facts["drops"]


def test_there_is_room_on_this_machine() -> None:
    room.usable_memory.cache_clear()
    assert 100 * MEBIBYTE < room.usable_memory(torch.device("cpu")) < 1 << 50
