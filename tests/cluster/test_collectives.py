"""Collectives in the text of programs, in each of XLA's notations for groups of devices."""

from __future__ import annotations

import pytest

from bert_jax.cluster.collectives import Collective, collectives, sent_bytes, summary
from bert_jax.errors import RunError

MESH = {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2}


def program(*lines):
    return "\n".join(["HloModule jit_f", "ENTRY %main (x: f32[8]) -> f32[8] {", *(f"  {line}" for line in lines), "}"])


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("slice",)),
        ("replica_groups=[1,8]<=[8]", ("slice", "fsdp", "tensor")),
        ("replica_groups={}", ("slice", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("slice",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','b'}", ("slice", "fsdp")),
    ],
)
def test_groups_are_axes_of_the_mesh(groups, axes):
    found = collectives(program(f"ROOT %sum = bf16[8,4]{{1,0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add"), MESH)
    assert found == [Collective("all-reduce", axes, 64, 1)]


def test_sizes_are_those_of_the_whole_array():
    pairs = "source_target_pairs={{0,1},{1,0}}"
    found = collectives(
        program(
            "%gathered = f32[8]{0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}",
            "%part = f32[4]{0} reduce-scatter(%x), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add",
            "%both = (f32[2]{0}, /*index=1*/s32[]) all-reduce(%x, %y), replica_groups=[8,1]<=[8], to_apply=%add",
            f"%moved = f32[8]{{0}} collective-permute(%x), {pairs}",
            "ROOT %done = f32[8]{0} add(%gathered, %moved)",
        ),
        MESH,
    )
    # Groups of one device exchange nothing.
    assert found == [
        Collective("all-gather", ("tensor",), 32, 1),
        Collective("reduce-scatter", ("tensor",), 32, 1),
        Collective("collective-permute", ("tensor",), 32, 1),
    ]


def test_collectives_in_loops_count_for_each_iteration():
    text = """HloModule jit_f
%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %sum = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}
%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %loop = (s32[], f32[8]) while(%p), condition=%stop, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}
%unused (p: f32[8]) -> f32[8] {
  %sum.1 = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %loop.1 = (s32[], f32[8]) while(%x), condition=%stop, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %call = f32[8] conditional(%x), branch_computations={%inner, %other}
}
"""
    assert collectives(text, {"data": 4}) == [Collective("all-reduce", ("data",), 32, 16)]


def test_an_unknown_notation_is_not_misread():
    with pytest.raises(RunError, match="describes groups of devices in an unknown way"):
        collectives(program("%sum = f32[8]{0} all-reduce(%x), replica_groups=<circle>, to_apply=%add"), MESH)


@pytest.mark.parametrize(("kind", "transfers"), [("all-reduce", 2), ("all-gather", 1), ("reduce-scatter", 1), ("all-to-all", 1)])
def test_all_axes_together_carry_what_a_ring_does(kind, transfers):
    mesh = {"slice": 4, "data": 3, "fsdp": 8, "tensor": 2}
    sent = sent_bytes([Collective(kind, ("slice", "data", "fsdp"), 1000, 5)], mesh)
    assert sum(sent.values()) == pytest.approx(transfers * 5000 * (96 - 1) / 96)
    # The network between slices carries what the axes within a slice have divided.
    assert sent["slice"] == pytest.approx(transfers * 5000 / 24 * 3 / 4)
    assert sent["tensor"] == 0


def test_the_summary_adds_what_is_alike():
    found = [
        Collective("all-gather", ("fsdp",), 10, 3),
        Collective("all-gather", ("fsdp",), 5, 1),
        Collective("all-gather", ("data",), 1, 1),
    ]
    assert summary(found) == [Collective("all-gather", ("data",), 1, 1), Collective("all-gather", ("fsdp",), 35, 4)]
