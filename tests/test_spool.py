"""Long lists on disk: the same as lists in memory, at half a byte an item."""

import tracemalloc

import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from moorline import spool
from moorline.spool import Spool, digests, pieces, repeats


def spooled(items):
    made = Spool(list, tuple)
    made.extend(items)
    return made


@pytest.fixture
def small(monkeypatch):
    """Everything beyond three items goes to disk, in pieces that cut lines apart."""
    monkeypatch.setattr(spool, "IN_MEMORY", 3)
    monkeypatch.setattr(spool, "_PIECE", 50)


@pytest.mark.parametrize("num", [0, 1, 3, 4, 16, 17, 33, 100])
def test_it_is_a_list(num, small):
    items = [(index, f"text {index} \u2028 \ud800 \n", None) for index in range(num)]
    made = spooled(items)
    assert list(made) == items
    assert made == items
    assert tuple(items) == made
    assert made != [*items, ()]
    assert len(made) == num
    assert [made[index] for index in range(-num, num)] == [*items, *items]
    assert made[1:7:2] == tuple(items[1:7:2])
    with pytest.raises(IndexError):
        made[num]
    assert isinstance(made.settled(), tuple) == (num <= 3)


def test_it_can_grow_while_it_is_read_from_time_to_time(small):
    made = spooled([])
    for index in range(40):
        made.append((index,))
        assert made[index] == (index,)
        assert made[index // 2] == (index // 2,)
    assert list(made) == [(index,) for index in range(40)]


@pytest.mark.lengthy
def test_memory_does_not_grow_with_it():
    """The control: the same items in a list."""

    def peak(make):
        tracemalloc.start()
        made = make()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, len(made)

    def items():
        return ((index, f"{index:0100}") for index in range(40_000))

    kept, num = peak(lambda: list(items()))
    small, same = peak(lambda: spooled(items()))
    assert num == same == 40_000
    assert kept > 8e6
    assert small < 2e6, "those of the first thousands, until they go to disk"


def test_nothing_is_left_of_its_file(small, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = spooled([(index,) for index in range(10)])
    assert len(made) == 10
    assert made[9] == (9,)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=examples(60))
@given(texts=st.lists(st.text(alphabet="ab\ud800", max_size=2), max_size=12))
def test_repeats_are_those_of_a_dictionary(texts):
    first, expected = {}, {}
    for index, each in enumerate(texts):
        if first.setdefault(each, index) != index:
            expected[index] = first[each]
    assert repeats(lambda: texts) == expected


def test_two_texts_of_one_digest_are_two(monkeypatch):
    """Digests are eight bytes: what they say is the same is looked at once more."""
    monkeypatch.setattr(spool, "digests", lambda texts: digests("a" for _ in texts))
    assert repeats(lambda: ["a", "b", "c"]) == {}
    assert repeats(lambda: ["a", "b", "a"]) == {2: 0}


def test_pieces_are_all_there():
    assert list(pieces(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert list(pieces([], 2)) == []
