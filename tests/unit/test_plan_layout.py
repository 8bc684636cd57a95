"""Places of ranks, by hand and as megatron numbers them."""

from __future__ import annotations

import pytest
from megatron.core.parallel_state import RankGenerator

from nemo_axpo.plan.layout import JobLayout, RankPlace


def test_two_nodes_of_four_by_hand():
    layout = JobLayout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2, gpus_per_node=4)
    assert (layout.world_size, layout.num_nodes) == (8, 2)
    assert layout.place_of(0) == RankPlace(0, node=0, tp_rank=0, dp_rank=0, pp_rank=0)
    assert layout.place_of(7) == RankPlace(7, node=1, tp_rank=1, dp_rank=1, pp_rank=1)
    assert [place.rank for place in layout.places() if place.is_leader] == [0, 2]
    assert layout.replica_nodes(0) == [0, 1] and layout.tensor_groups_across_nodes() == 0


def test_tensor_groups_across_nodes():
    assert JobLayout(8, 1, 2, gpus_per_node=4).tensor_groups_across_nodes() == 2
    assert JobLayout(4, 1, 3, gpus_per_node=6).tensor_groups_across_nodes() == 1  # ranks 4-7 of nodes 0 and 1


@pytest.mark.parametrize(("tp", "pp", "dp"), [(2, 2, 2), (4, 2, 3), (1, 4, 2), (8, 1, 4)])
def test_groups_are_megatrons(tp, pp, dp):
    generator = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=1, order="tp-cp-ep-dp-pp")
    places = JobLayout(tp, pp, dp, gpus_per_node=8).places()

    def groups(*fixed: str) -> list[list[int]]:
        found: dict[tuple, list[int]] = {}
        for place in places:
            found.setdefault(tuple(getattr(place, name) for name in fixed), []).append(place.rank)
        return sorted(found.values())

    assert groups("dp_rank", "pp_rank") == sorted(generator.get_ranks("tp"))
    assert groups("tp_rank", "dp_rank") == sorted(generator.get_ranks("pp"))
    assert groups("tp_rank", "pp_rank") == sorted(generator.get_ranks("dp"))
