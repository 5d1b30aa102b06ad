"""Which positions are held, which rows are drawn, and what part of a batch the reference reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moorline import InputError
from moorline.method.positions import PositionRule, draw_rows, needed_part


def test_a_rule_reads_its_setting():
    assert PositionRule.parse("all") == PositionRule()
    assert PositionRule.parse("first:3") == PositionRule(3)
    for wrong in ("first", "first:0", "first:-1", "first:two", "last:3", ""):
        with pytest.raises(InputError, match=r"`positions` must be 'all' or 'first:K'"):
            PositionRule.parse(wrong)


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_the_first_k_are_those_of_a_walk_along_each_row(rows):
    positions = torch.tensor(rows)
    for first in (1, 2, 20):
        expected = []
        for row in rows:
            count, kept = 0, []
            for each in row:
                count = count + 1 if each else 0
                kept.append(each and count <= first)
            expected.append(kept)
        assert PositionRule(first)(positions).tolist() == expected
    assert PositionRule()(positions) is positions


def padded():
    """Three rows; responses at the end of each, padding behind."""
    positions = torch.zeros(3, 8, dtype=torch.bool)
    positions[0, 2:5], positions[1, 1:3], positions[2, 4:7] = True, True, True
    inputs = {
        "input_ids": torch.arange(24).reshape(3, 8), "attention_mask": torch.ones(3, 8).long(),
        "labels": torch.zeros(3, 8).long(), "use_cache": False,
    }  # fmt: skip
    return inputs, positions


def padding_free():
    """Three documents in one row, of 4, 3 and 5 tokens."""
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]])
    positions = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0]]).bool()
    inputs = {"input_ids": torch.arange(12)[None], "position_ids": ids, "labels": ids}
    return inputs, positions


@pytest.mark.lengthy
@pytest.mark.parametrize(("make", "sizes"), [(padded, (3, 2, 3)), (padding_free, (2, 2, 2))])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_every_document_is_drawn_with_the_same_probability(make, sizes, fraction):
    inputs, positions = make()
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_rows(inputs, positions, fraction, generator) for _ in range(4000)]
    num = torch.stack(drawn).float()
    shares = num.mean(dim=0)[positions]
    # 4000 draws: the standard error of a share is below 0.008
    assert torch.allclose(shares, torch.full_like(shares, fraction), atol=0.035)
    assert not num.sum(dim=0)[~positions].any()
    counts = {int(each.sum()) for each in drawn}
    assert len(counts) > 1
    # Whole documents or nothing.
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    for each in drawn[:50]:
        flat = each[positions]
        for start, size in zip(starts, sizes, strict=True):
            assert flat[start : start + size].float().mean().item() in (0.0, 1.0)


def test_the_number_drawn_is_never_further_than_one_from_its_mean():
    inputs, positions = padded()
    generator = torch.Generator().manual_seed(0)
    rows = {int(draw_rows(inputs, positions, 0.5, generator).any(1).sum()) for _ in range(200)}
    assert rows == {1, 2}
    same = draw_rows(inputs, positions, 1.0, generator)
    assert torch.equal(same, positions)


def test_the_needed_part_of_a_padded_batch_ends_at_its_last_position():
    inputs, positions = padded()
    positions[2] = False
    part, there = needed_part(inputs, positions)
    assert part["input_ids"].tolist() == [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]]
    assert part["use_cache"] is False
    assert part["input_ids"][there].tolist() == inputs["input_ids"][positions].tolist()


def test_the_needed_part_of_a_padding_free_batch_cuts_each_document():
    inputs, positions = padding_free()
    inputs["cu_seq_lens_q"] = torch.tensor([0, 4, 7, 12])
    positions[:, 4:7] = False
    part, there = needed_part(inputs, positions)
    assert part["input_ids"].tolist() == [[0, 1, 2, 7, 8, 9, 10]]
    assert part["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert "cu_seq_lens_q" not in part
    assert part["input_ids"][there].tolist() == inputs["input_ids"][positions].tolist()


@pytest.mark.parametrize("make", [padded, padding_free])
def test_one_token_is_left_where_nothing_is_wanted(make):
    inputs, positions = make()
    part, there = needed_part(inputs, torch.zeros_like(positions))
    assert part["input_ids"].numel() == 1
    assert there.tolist() == [[False]]


def test_a_batch_that_cannot_be_cut_is_left_whole():
    inputs, positions = padded()
    inputs["pixel_values"] = torch.zeros(2, 3, 4, 4)
    positions[1:] = False
    part, there = needed_part(inputs, positions)
    assert part.keys() == inputs.keys()
    assert part["input_ids"].shape == (3, 8)
    assert there is positions
