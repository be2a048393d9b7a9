import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.square import SquareAttack

from robustcompress.robustness.squares import Window, bumpy_tiles, tile_counts, two_bumps, window_size

sides = st.integers(1, 40)
shares = st.floats(1e-4, 1)


@given(share=shares, side=st.integers(1, 64))
def test_on_square_images_windows_are_the_papers_squares(share: float, side: int) -> None:
    length = round(math.sqrt(share) * side)
    assert window_size(share, (side, side)) == (max(length, 1), max(length, 1))
    odd = max(length, 3) + (max(length, 3) + 1) % 2
    assert window_size(share, (side, side), least=3, odd=True) == (min(odd, side),) * 2


@given(share=shares, height=sides, width=sides, odd=st.booleans())
def test_windows_fit_and_turn_with_the_image(share: float, height: int, width: int, odd: bool) -> None:
    size = window_size(share, (height, width), odd=odd)
    assert 1 <= size[0] <= height
    assert 1 <= size[1] <= width
    assert window_size(share, (width, height), odd=odd) == (size[1], size[0])


def test_on_a_single_row_a_window_is_a_run_of_so_many_features() -> None:
    assert window_size(0.25, (1, 100)) == (1, 25)
    assert window_size(0.001, (1, 100)) == (1, 1)
    assert window_size(0.5, (4, 100)) == (4, 50)


@given(size=st.tuples(sides, sides), share=shares, place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_windows_lie_in_the_image(size: tuple[int, int], share: float, place: tuple[float, float]) -> None:
    window = Window.at(place, window_size(share, size), size)
    image = torch.zeros(1, 1, *size)
    window.of(image).fill_(1)
    assert int(image.sum()) == window.height * window.width


def test_every_place_can_be_chosen() -> None:
    tops = {Window.at((number / 100, 0), (3, 3), (8, 8)).top for number in range(100)}
    assert tops == {0, 1, 2, 3, 4, 5}
    assert Window.at((0.999, 0.999), (8, 8), (8, 8)) == (0, 0, 8, 8)


@given(
    first=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    second=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_two_windows_meet_in_what_both_cover(
    first: tuple[float, float], second: tuple[float, float], size: tuple[int, int]
) -> None:
    one, other = Window.at(first, size, (9, 9)), Window.at(second, size, (9, 9))
    image = torch.zeros(9, 9)
    one.of(image).add_(1)
    other.of(image).add_(1)
    met = one.meet(other).of(image)
    assert met.numel() == int((image == 2).sum())
    assert bool((met == 2).all())


@pytest.mark.parametrize("side", [2, 3, 4, 5, 7, 12, 25])
def test_bumps_are_those_of_the_authors_code(side: int) -> None:
    authors = SquareAttack(lambda images: images, norm="L2", eps=1, device="cpu")
    with torch.random.fork_rng():
        theirs = [authors.eta(side) for _ in range(20)]
    for side_by_side in (False, True):
        ours = two_bumps(side, side, side_by_side=side_by_side)
        assert any(torch.allclose(ours.float(), other, atol=1e-6) for other in theirs)


@given(height=st.integers(1, 30), width=st.integers(1, 30), side_by_side=st.booleans())
def test_bumps_have_length_one_and_a_hill_and_a_valley(height: int, width: int, side_by_side: bool) -> None:
    pair = two_bumps(height, width, side_by_side=side_by_side)
    assert pair.shape == (height, width)
    assert float(pair.norm()) == pytest.approx(1)
    assert bool((pair > 0).any())
    assert bool((pair < 0).any()) == (height * width > 1)


def test_tiles_pave_the_image_from_its_middle() -> None:
    assert tile_counts((28, 32)) == (5, 5)
    assert tile_counts((3, 1)) == (3, 1)
    signs = torch.ones(2, 3, 5, 5)
    signs[0, 0, 0, 1] = -1
    cuts = [[False] * 5 for _ in range(5)]
    cuts[2][3] = True
    paved = bumpy_tiles((28, 32), signs, cuts)
    assert paved.shape == (2, 3, 28, 32)
    assert bool((paved[:, :, [0, 26, 27], :] == 0).all())
    assert bool((paved[:, :, :, [0, 31]] == 0).all())
    plain, turned = (two_bumps(5, 6, side_by_side=cut).float() for cut in (False, True))
    torch.testing.assert_close(paved[1, 2, 1:6, 1:7], plain)
    torch.testing.assert_close(paved[0, 0, 1:6, 7:13], -plain)
    torch.testing.assert_close(paved[0, 0, 11:16, 19:25], turned)
    torch.testing.assert_close(paved.square().sum((2, 3)), torch.full((2, 3), 25.0))
