"""Packing rows: shared beginnings are held once, attention gets exactly the new queries, wrong images are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_qwen3_vl import IMAGE, MERGE, VIDEO, RandomImages, mixed_samples, sample

from nemo_axpo.actors.microbatches import plan_microbatches
from nemo_axpo.actors.packing import PackingCounts, VisionTokens, pack_rows, stack_rows
from nemo_axpo.actors.update_step import packing_metrics

VISION = VisionTokens(IMAGE, VIDEO, MERGE)


def pack(*rows, multiple_of=1, form="padded"):
    return pack_rows(rows, image_store=RandomImages(), vision=VISION, multiple_of=multiple_of, form=form)


def test_the_example_of_the_module():
    # rows a b c and a b d e: T = 5 tokens; the second row asks attention only about d and e
    a, b, c, d, e = 1, 2, 3, 4, 5
    inputs, rows = pack(sample(a, b, d, e, trained=1), sample(a, b, c, trained=1))
    assert rows.order_B.tolist() == [1, 0]
    assert inputs.token_ids_T.tolist() == [a, b, c, d, e]
    whole, suffix = inputs.rows.blocks
    assert whole.mask_B1QS is None and whole.query_BQ[0, :3].tolist() == [0, 1, 2]
    assert suffix.key_BS[0, :4].tolist() == [0, 1, 3, 4] and suffix.query_BQ[0, :2].tolist() == [3, 4]
    visible = (suffix.mask_B1QS[0, 0] == 0)[:2, :4].tolist()
    assert visible == [[True, True, True, False], [True, True, True, True]]
    # c is predicted from b (token 1), e from d (token 3)
    assert inputs.predictor_L.tolist() == [1, 3]
    queries = torch.cat([block.query_BQ.flatten() for block in inputs.rows.blocks])
    assert queries[inputs.rows.source_T].tolist() == [0, 1, 2, 3, 4]


def test_equal_rows_and_prefixes_of_rows_add_no_token():
    inputs, _ = pack(sample(1, 2, 3, trained=1), sample(1, 2, 3, trained=2), sample(1, 2, trained=1))
    assert inputs.token_ids_T.tolist() == [1, 2, 3]
    # sorted: 1 2 | 1 2 3 | 1 2 3
    assert inputs.predictor_L.tolist() == [0, 1, 0, 1]


def test_rows_with_different_images_share_nothing_after_them():
    one, other = sample(1, "4x4/a", 2, 3, trained=1), sample(1, "4x4/b", 2, 3, trained=1)
    num_row = len(one.token_ids)
    inputs, _ = pack(one, other)
    # the token 1 and <|vision_start|> are shared, every later token is not
    assert inputs.token_ids_T.numel() == 2 * num_row - 2
    same, _ = pack(one, sample(1, "4x4/a", 2, 4, trained=1))
    assert same.token_ids_T.numel() == num_row + 1
    assert same.images[0].patches_IPD.shape[0] == 1


def test_every_query_is_its_own_token_and_sees_its_whole_past():
    rows = mixed_samples()
    inputs, packed = pack(*rows)
    queries = torch.cat([block.query_BQ.flatten() for block in inputs.rows.blocks])
    assert queries[inputs.rows.source_T].tolist() == list(range(inputs.token_ids_T.numel()))
    assert inputs.token_ids_T.numel() < sum(len(row.token_ids) for row in rows)
    targets = packed.token_ids_BS[packed.mask_BS]
    expected = [t for i in packed.order_B for t, m in zip(rows[i].token_ids, rows[i].loss_mask) if m]
    assert targets.tolist() == expected


def test_filler_tokens_for_sequence_parallel():
    inputs, _ = pack(sample(1, 2, 3, trained=1), multiple_of=4)
    assert inputs.token_ids_T.tolist() == [1, 2, 3, 1] and inputs.positions_3T.shape == (3, 4)


def test_wrong_images_are_refused():
    row = sample(1, "4x4/a", 2, trained=1, name="q/3")
    with pytest.raises(ValueError, match=r"q/3 has 4 for 0 tokens of 0 images: expand every image"):
        pack(type(row)(**{**vars(row), "image_ids": ()}))
    with pytest.raises(ValueError, match="video is not supported; q/4 holds"):
        pack(sample(1, VIDEO, 2, trained=1, name="q/4"))


def test_stack_rows_pads_on_the_right():
    assert stack_rows([(1, 2), (3,)], dtype=np.int64).tolist() == [[1, 2], [3, 0]]


def test_plan_keeps_questions_together_and_bounds_padded_tokens():
    lengths = {"a": [5, 9], "b": [4, 4, 4], "c": [30]}
    rows = [
        sample(*range(1, n + 1), trained=1, name=f"{q}{i}", question=q)
        for q, group in lengths.items()
        for i, n in enumerate(group)
    ]
    plan = plan_microbatches(rows, max_tokens=18)
    names = [[rows[i].rollout_id for i in indices] for indices in plan]
    # b first (longest row 4): three rows of 4 fit into 18; a: two rows of 9 do; c is longer than the budget, so alone
    assert names == [["b0", "b1", "b2"], ["a0", "a1"], ["c0"]]
    assert sorted(i for indices in plan for i in indices) == list(range(len(rows)))


def test_what_packing_saves_and_costs():
    # rows 1 2 3 and 1 2 4 5: 7 tokens alone, 5 packed; padded to 8 queries each, and 3 fillers
    rows = [sample(1, 2, 3, trained=1), sample(1, 2, 4, 5, trained=1)]
    assert pack(*rows)[1].counts == PackingCounts(7, 5, 16)
    assert pack(*rows, multiple_of=8)[1].counts == PackingCounts(7, 5, 19)
    assert pack(*rows, form="thd")[1].counts == PackingCounts(7, 5, 5)
    assert pack(*rows, form="thd", multiple_of=8)[1].counts == PackingCounts(7, 5, 8)
    assert packing_metrics(PackingCounts(7, 5, 8)) == {"batch/padding": 0.375, "batch/sharing": 1.4}


def test_thd_plan_counts_shared_tokens_once_and_keeps_the_longest_first():
    # q: 1 2 3 4 + one token each, 5 + 1 + 1 = 7 packed; p: 6; r: 3; s: longer than the budget, so alone
    rows = [sample(1, 2, 3, 4, last, trained=1, name=f"q{last}", question="q") for last in (5, 6, 7)]
    rows += [
        sample(*range(1, 7), trained=1, name="p", question="p"),
        sample(1, 2, 9, trained=1, name="r", question="r"),
    ]
    rows += [sample(*range(1, 13), trained=1, name="s", question="s")]
    plan = plan_microbatches(rows, max_tokens=10, form="thd", image_token_id=IMAGE)
    assert [[rows[i].rollout_id for i in indices] for indices in plan] == [["s"], ["q5", "q6", "q7", "r"], ["p"]]
    # a question that does not fit is cut, and pays its beginning again: 4 + 2 tokens, then 4 + 1
    plan = plan_microbatches(rows[:3], max_tokens=6, form="thd", image_token_id=IMAGE)
    assert [[rows[i].rollout_id for i in indices] for indices in plan] == [["q5", "q6"], ["q7"]]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(1, 3), min_size=2, max_size=12)), min_size=1, max_size=12
    ),
    st.integers(4, 30),
)
def test_a_thd_micro_batch_never_exceeds_the_limit(rows, max_tokens):
    samples = [sample(*tokens, trained=1, name=str(n), question=f"q{q}") for n, (q, tokens) in enumerate(rows)]
    plan = plan_microbatches(samples, max_tokens=max_tokens, form="thd", image_token_id=IMAGE)
    assert sorted(index for indices in plan for index in indices) == list(range(len(samples)))
    for indices in plan:
        packed = pack(*(samples[index] for index in indices), form="thd")[1].counts.num_packed_tokens
        assert packed <= max_tokens or len(indices) == 1
