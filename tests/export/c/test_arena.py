from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from robustcompress.export.c.arena import ALIGNMENT, Life, lives, place

LIVES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(
        lambda length, first, steps: Life(length, first, first + steps),
        st.integers(1, 100),
        st.integers(0, 9),
        st.integers(0, 4),
    ),
    max_size=12,
)


@given(LIVES)
def test_values_that_live_together_never_share_a_place(values: dict[str, Life]) -> None:
    starts, length = place(values)
    assert starts.keys() == values.keys()
    for name, life in values.items():
        assert starts[name] % ALIGNMENT == 0
        assert starts[name] + life.length <= length
    for one, other in combinations(values, 2):
        first, second = values[one], values[other]
        if first.first <= second.last and second.first <= first.last:
            assert starts[one] + first.length <= starts[other] or starts[other] + second.length <= starts[one]


def test_values_that_follow_each_other_share_one_place() -> None:
    chain = {f"v{step}": Life(64, step, step + 1) for step in range(9)}
    assert place(chain)[1] == 128  # two at a time
    assert place({}) == ({}, 0)


def test_a_value_lives_from_the_step_that_makes_it_to_the_last_that_reads_it() -> None:
    found = lives({"a": 5, "b": 6}, [["a"], ["b"], [], []], [[], ["a"], ["b"], ["a"]])
    assert found == {"a": Life(5, 0, 3), "b": Life(6, 1, 2)}
