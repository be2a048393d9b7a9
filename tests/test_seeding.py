import random

import numpy as np
import torch

from robustcompress.seeding import borrowed_generators, derive_seed, generator_for, seed_globals


def test_seeds_differ_by_every_part_of_their_place() -> None:
    places = [(), ("a",), ("b",), ("a", 1), ("a", 2), ("a1",), (1, "a")]
    seeds = {derive_seed(seed, *place) for seed in (0, 1) for place in places}
    assert len(seeds) == 2 * len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_same_place_gives_the_same_numbers() -> None:
    first, second = (torch.rand(4, generator=generator_for("cpu", 3, "x")) for _ in range(2))
    assert torch.equal(first, second)


def test_borrowed_generators_are_given_back_as_they_were() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with borrowed_generators():
        seed_globals(99)
        assert (torch.rand(1).item(), random.random(), np.random.rand()) != expected
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
