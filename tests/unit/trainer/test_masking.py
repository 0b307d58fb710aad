"""Masks: which are taken, what is wrong with others, and what they become in the latents and in the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom_api.failures import FailureReason
from darkroom_api.masks import Mask
from darkroom_api.training import Training
from darkroom_trainer import objectives
from darkroom_trainer.augmenting import Changes
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.buckets import Placement
from darkroom_trainer.dataset import Picture, scan
from darkroom_trainer.errors import RunError
from darkroom_trainer.items import Item
from darkroom_trainer.pixels import mask_weights, to_mask
from tests.builders.pictures import draw, write_masks, write_pictures
from tests.unit.trainer.sessions import Maker

FOLDER = "2_sks robot"
ALPHA, FILE = Mask(source="Alpha"), Mask(source="File")


def rejection(directory: Path, mask: Mask) -> str:
    with pytest.raises(RunError) as caught:
        scan(directory, mask=mask)
    assert caught.value.reason is FailureReason.DATASET_REJECTED
    return caught.value.message


def half(size: tuple[int, int]) -> Image.Image:
    """Draw a mask whose right half counts."""
    mask = Image.new("L", size)
    mask.paste("white", (size[0] // 2, 0, *size))
    return mask


def item(path: Path, placement: Placement, **changes: Any) -> Item:
    return Item(Picture(path, path.name, "x", (0, 0), "a", 1, "0", "0"), placement, Changes(**changes))


def test_masks_are_no_pictures_whether_asked_for_or_not(tmp_path: Path) -> None:
    plain = scan(write_pictures(tmp_path))
    write_masks(tmp_path)
    (tmp_path / FOLDER / "other-MaskLabel.PNG").write_bytes(b"no picture either")
    assert scan(tmp_path) == plain
    masked = scan(tmp_path, mask=FILE)
    assert [it.name for it in masked] == [it.name for it in plain]
    assert all(it.mask_sha256 for it in masked)
    assert not any(it.mask_sha256 for it in plain)


def test_every_wrong_mask_file_is_told_at_once(tmp_path: Path) -> None:
    write_masks(write_pictures(tmp_path, sizes=[(64, 80)] * 6))
    folder = tmp_path / FOLDER
    (folder / "0-masklabel.png").unlink()
    half((80, 64)).save(folder / "1-masklabel.png")
    Image.new("L", (64, 80)).save(folder / "2-masklabel.png")
    (folder / "3-masklabel.png").write_text("no picture")
    whole = (folder / "4-masklabel.png").read_bytes()
    (folder / "4-masklabel.png").write_bytes(whole[: len(whole) // 2])
    message = rejection(tmp_path, FILE)
    for expected in (
        "spec.dataset.uri: 5 problems",
        "training.mask wants beside every picture a mask of its size, such as 'x-masklabel.png' for 'x.jpg'",
        f"{FOLDER}/0.png: its mask 0-masklabel.png is missing",
        f"{FOLDER}/1.png: its mask 1-masklabel.png has 80x64 pixels, but the picture 64x80",
        f"{FOLDER}/2.png: its mask 2-masklabel.png is black all over",
        f"{FOLDER}/3.png: its mask 3-masklabel.png is no picture in JPEG, PNG or WebP format, or is broken",
        f"{FOLDER}/4.png: its mask 4-masklabel.png cannot be decoded",
    ):
        assert expected in message
    assert f"{FOLDER}/5.png" not in message


def test_every_picture_without_transparency_is_told_at_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, sizes=[(64, 64)] * 4)
    folder = tmp_path / FOLDER
    for index, alpha in ((1, half((64, 64))), (2, Image.new("L", (64, 64)))):
        picture = draw((64, 64), seed=index)
        picture.putalpha(alpha)
        picture.save(folder / f"{index}.png")
    message = rejection(tmp_path, ALPHA)
    for expected in (
        "spec.dataset.uri: 3 problems",
        f"{FOLDER}/0.png: has no transparency, so it has no mask",
        f"{FOLDER}/2.png: is transparent all over",
        f"{FOLDER}/3.png: has no transparency, so it has no mask",
    ):
        assert expected in message
    assert f"{FOLDER}/1.png" not in message


def test_a_mask_stands_upright_with_its_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path, sizes=[])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be seen
    draw((80, 64), seed=1).save(tmp_path / FOLDER / "photo.jpg", exif=exif)
    half((64, 80)).save(tmp_path / FOLDER / "photo-masklabel.png")
    assert scan(tmp_path, mask=FILE)[0].size == (64, 80)
    half((80, 64)).save(tmp_path / FOLDER / "photo-masklabel.png", exif=exif)
    (picture,) = scan(tmp_path, mask=FILE)
    below = to_mask(Item(picture, Placement((64, 80), (64, 80))), FILE)
    assert below[0].mean(dim=1).tolist() == [0] * 5 + [1] * 5


def test_each_number_is_the_mean_over_what_a_latent_stands_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a-masklabel.png")
    expected = torch.from_numpy(pixels.reshape(8, 8, 12, 8).mean(axis=(1, 3)) / 255).float()
    found = to_mask(item(tmp_path / "a.jpg", Placement((96, 64), (96, 64))), FILE)
    torch.testing.assert_close(found[0], expected)
    cut = to_mask(item(tmp_path / "a.jpg", Placement((96, 64), (64, 64)), corner=(32, 0), mirrored=True), FILE)
    torch.testing.assert_close(cut[0], expected[:, 4:].flip(-1))


def test_transparency_and_a_file_of_it_are_the_same_mask(tmp_path: Path) -> None:
    mask = Image.fromarray(np.random.default_rng(2).integers(0, 256, (80, 64), dtype=np.uint8))
    picture = draw((64, 80), seed=1)
    picture.putalpha(mask)
    picture.save(tmp_path / "a.png")
    mask.save(tmp_path / "a-masklabel.png")
    shown = item(tmp_path / "a.png", Placement((64, 80), (64, 64)))
    assert torch.equal(to_mask(shown, ALPHA), to_mask(shown, FILE))


def test_a_picture_without_a_mask_counts_whole(tmp_path: Path) -> None:
    """As those of the class do, which stand beside masked ones."""
    write_masks(write_pictures(tmp_path, sizes=[(64, 80)]))
    (picture,) = scan(tmp_path)
    whole = to_mask(Item(picture, Placement((64, 80), (64, 80))), FILE)
    assert torch.equal(whole, torch.ones(1, 10, 8))


def test_a_sharp_edge_leaves_nothing_of_what_it_cuts_off(tmp_path: Path) -> None:
    half((1000, 1000)).save(tmp_path / "a-masklabel.png")
    found = to_mask(item(tmp_path / "a.png", Placement((128, 128), (128, 128))), FILE)
    assert found[0, :, :7].unique().tolist() == [0]
    assert found[0, :, 9:].unique().tolist() == [1]


MASKS = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4).map(lambda it: torch.tensor(it).view(1, 1, 2, 2))


@given(MASKS, st.floats(0, 1))
def test_weights_follow_the_mask_above_their_least(mask: torch.Tensor, least: float) -> None:
    weights = mask_weights(mask, Mask(source="File", unmasked_weight=least))
    torch.testing.assert_close(weights, mask.maximum(torch.tensor(least)))


@given(MASKS, st.floats(0, 1))
def test_normalized_weights_have_a_mean_of_1_or_are_all_0(mask: torch.Tensor, least: float) -> None:
    weights = mask_weights(mask, Mask(source="File", unmasked_weight=least, normalize=True))
    assert weights.isfinite().all()
    if mask.max() > 1e-30 or least > 1e-30:
        assert weights.mean().item() == pytest.approx(1, rel=1e-4)


def test_the_loss_is_weighted_and_its_mean_is_over_all_of_the_picture() -> None:
    """As kohya's; the second picture counts half in its left place and not at all in its right."""
    seen = objectives.Noised(torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]))
    predicted = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    masks = torch.tensor([[1.0, 1.0], [0.5, 0.0]]).view(2, 1, 1, 2)

    def losses(spec: Mask) -> list[float]:
        return objectives.losses(predicted, seen.weighted(mask_weights(masks, spec)), torch.ones(2)).tolist()

    assert losses(FILE) == [(1 + 9) / 2, 4 * 0.5 / 2]
    assert losses(Mask(source="File", unmasked_weight=0.25)) == [5, (4 * 0.5 + 4 * 0.25) / 2]
    assert losses(Mask(source="File", normalize=True)) == [5, 4]


def test_what_is_joined_keeps_its_weights() -> None:
    parts = [
        objectives.Noised(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0])).weighted(
            torch.full((1, 1, 1, 1), weight)
        )
        for weight in (0.5, 0.25)
    ]
    joined = objectives.joined(parts, torch.device("cpu"))
    assert joined.weights_B1HW is not None
    assert joined.weights_B1HW.flatten().tolist() == [0.5, 0.25]


def course(directory: Path, **mask: Any) -> Course:
    training = Training.model_validate(
        {"resolution": 96, "buckets": {"minimum": 64, "maximum": 128}, "mask": mask or None}
    )
    return arrange(scan(directory, mask=training.mask), training)


def test_other_masks_or_another_use_of_them_is_another_course(tmp_path: Path) -> None:
    write_masks(write_pictures(tmp_path))
    specs: list[dict[str, Any]] = [
        {},
        {"source": "File"},
        {"source": "File", "normalize": True},
        {"source": "File", "unmaskedWeight": 0.1},
    ]
    before = [course(tmp_path, **spec).fingerprint for spec in specs]
    assert len(set(before)) == 4
    assert before == [course(tmp_path, **spec).fingerprint for spec in specs]
    half((64, 64)).save(tmp_path / FOLDER / "0-masklabel.png")
    after = [course(tmp_path, **spec).fingerprint for spec in specs]
    assert after[0] == before[0]
    assert all(one != other for one, other in zip(before[1:], after[1:], strict=True))


def test_a_run_cannot_go_on_with_other_masks(make: Maker, tmp_path: Path) -> None:
    def open_with(size: int) -> Any:
        folder = tmp_path / "pictures" / FOLDER
        half((64, 64)).rotate(size).save(folder / "0-masklabel.png")
        session = make(mask={"source": "File"})
        session.inputs = session.course.fingerprint
        return session

    open_with(0).capture().write(tmp_path / "state")
    open_with(0).load(tmp_path / "state")
    with pytest.raises(RunError, match="masks, base model or initial weights changed since this run began"):
        open_with(90).load(tmp_path / "state")


def test_only_what_counts_is_learned_from(make: Maker) -> None:
    """A least weight of 1 is no mask, to the bit; one over a part changes the loss."""
    plain, partly = make(), make(mask={"source": "File"})
    everywhere = make(mask={"source": "File", "unmaskedWeight": 1})
    losses = [session.step().loss for session in (plain, everywhere, partly)]
    assert losses[0] == losses[1]
    assert losses[2] < 0.8 * losses[0]
