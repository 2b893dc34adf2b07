"""Proposals: on generated machines they always pass the checks, and plans that pass never give out more than there is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_hub.capabilities import Capability
from llm_hub.gpu.checks import make_plan
from llm_hub.gpu.facts import KVLayers, ModelFacts
from llm_hub.gpu.inventory import Gpu, GpuProcess, Inventory, MigInstance
from llm_hub.gpu.known import Known, KnownModel
from llm_hub.gpu.plan import Plan, resolve
from llm_hub.gpu.proposal import Proposal, propose, to_toml
from llm_hub.launch import Devices, GpuNeeds
from llm_hub.settings import Settings

GIB = 1 << 30
ALL = frozenset(Capability)
TEXT, EMBEDDING, VISION = Capability.TEXT, Capability.EMBEDDING, Capability.VISION


def facts(weights: float, heads: int, kv_heads: int) -> ModelFacts:
    cache = (KVLayers(layers=32, elements=2 * kv_heads * 128, heads=kv_heads),)
    return ModelFacts(
        architecture="llama",
        layers=32,
        hidden=4096,
        intermediate=14336,
        vocabulary=128256,
        heads=heads,
        kv_heads=kv_heads,
        context_length=131072,
        weights=int(weights * GIB),
        cache=cache,
    )


def backend(
    name: str,
    weights: float | None,
    *,
    share: float | None = None,
    has: frozenset[Capability] = frozenset({TEXT}),
    heads: tuple[int, int] = (32, 8),
    context: int = 8192,
    fixed: int | None = None,
) -> Known:
    """A backend of one model; with a share it is one that divides heads and takes what it is given, as vLLM does."""
    known = (
        KnownModel(name="m", reason="not here")
        if weights is None
        else KnownModel(name="m", facts=facts(weights, *heads))
    )
    needs = GpuNeeds(share=share, split="layers" if share is None else "tensor", context=context, gpus=fixed)
    return Known(backend=name, plugin="p", offers=ALL, has_models=has, needs=needs, models=(known,))


def placed_on(known: Known, devices: Devices) -> Known:
    """What plugins say once a backend has its GPUs: see the launch modules of vllm and ollama."""
    needs = known.needs
    if needs.share is not None:
        count = len(devices) or 1
        needs = msgspec.structs.replace(
            needs,
            share=needs.share if devices.memory is None else (devices.fraction() or needs.share),
            tensor_parallel=needs.gpus or count,
            gpus=needs.gpus or count,
        )
    elif needs.context is not None:
        total = sum(gpu.total or 0 for gpu in devices.gpus)
        needs = msgspec.structs.replace(needs, context=32768 if total >= 23 * GIB else 4096)
    return msgspec.structs.replace(known, needs=needs)


def checked(proposal: Proposal, inventory: Inventory, known: dict[str, Known], head: str = "") -> Plan:
    """The plan of the proposal as it would be pasted."""
    made = Settings.from_toml(head + to_toml(proposal))
    placed = {one.backend: one for one in proposal.placed}
    now = {}
    for name, one in known.items():
        devices = Devices()
        if name in placed:
            devices = resolve(made.assignments, inventory)[name].devices
        now[name] = placed_on(one, devices)
    return make_plan(made, inventory, now)


def proposed(inventory: Inventory, *backends: Known, head: str = "") -> tuple[Proposal, dict[str, Known]]:
    known = {one.backend: one for one in backends}
    return propose(Settings.from_toml(head), inventory, known, describe=placed_on), known


def card(index: int, total: float = 24, **fields: Any) -> Gpu:
    mine = {
        "uuid": f"GPU-{index}",
        "name": f"{total} GiB",
        "total": int(total * GIB),
        "free": int((total - 0.5) * GIB),
        "used": 0,
    }
    return Gpu(index=index, **{**mine, **fields})


def layout(proposal: Proposal) -> dict[str, tuple[str, ...]]:
    return {one.backend: one.gpus for one in proposal.placed}


# -- what is proposed -------------------------------------------------------------------------------------------------


def test_two_cards_the_large_model_has_one_and_the_small_ones_the_other() -> None:
    inventory = Inventory(gpus=(card(0), card(1)))
    proposal, known = proposed(
        inventory,
        backend("vllm", 15, share=0.92),
        backend("ollama", 4, has=frozenset({VISION})),
        backend("embed", 0.3, has=frozenset({EMBEDDING}), context=512),
    )
    assert layout(proposal) == {"vllm": ("GPU-1",), "ollama": ("GPU-0",), "embed": ("GPU-0",)}
    assert "it fits there beside ollama" in proposal.placed[2].reasons
    assert proposal.placed[0].memory == pytest.approx(22 * GIB, rel=0.01)  # its own share, not only what it needs
    assert checked(proposal, inventory, known).findings == ()


def test_one_card_is_shared_and_what_is_left_goes_to_the_one_that_makes_use_of_it() -> None:
    inventory = Inventory(gpus=(card(0, 48),))
    proposal, known = proposed(inventory, backend("vllm", 15, share=0.92), backend("ollama", 4))
    vllm, ollama = proposal.placed
    assert vllm.gpus == ollama.gpus == ("GPU-0",)
    assert vllm.memory + ollama.memory > 46.5 * GIB
    assert ollama.capabilities == ()  # text is carried by vllm: nothing is chosen by chance
    assert checked(proposal, inventory, known).usable


def test_several_gpus_only_where_one_is_too_small_and_the_heads_divide() -> None:
    four = Inventory(gpus=tuple(card(at) for at in range(4)))
    big = backend("vllm", 36, share=0.92)
    proposal, known = proposed(four, big)
    assert layout(proposal) == {"vllm": ("GPU-0", "GPU-1")}
    assert "its heads divided among 2" in proposal.placed[0].reasons[0]
    assert checked(proposal, four, known).usable
    odd, known = proposed(four, backend("vllm", 36, share=0.92, heads=(9, 3)))
    assert layout(odd) == {"vllm": ("GPU-0", "GPU-1", "GPU-2")}
    assert checked(odd, four, known).usable
    fixed, known = proposed(four, backend("vllm", 10, share=0.92, fixed=4))
    assert len(fixed.placed[0].gpus) == 4
    small, _ = proposed(four, backend("vllm", 10, share=0.92))
    assert len(small.placed[0].gpus) == 1


def test_only_equal_cards_go_together() -> None:
    mixed = Inventory(gpus=(card(0, 24), card(1, 16), card(2, 24)))
    proposal, known = proposed(mixed, backend("vllm", 36, share=0.92))
    assert layout(proposal) == {"vllm": ("GPU-0", "GPU-2")}
    assert checked(proposal, mixed, known).usable


def test_what_has_no_place_is_told_with_what_would_make_one() -> None:
    one = Inventory(gpus=(card(0),))
    proposal, _ = proposed(one, backend("vllm", 36, share=0.92))
    assert not proposal.complete
    (without,) = proposal.unplaced
    assert "it needs 38.2 GiB, and the most that is left is 23.0 GiB on GPU 0" in without.reason
    assert without.would[0] == "a GPU with 38.2 GiB free"
    assert without.would[1].startswith("2 equal GPUs with ")
    (long,) = proposed(one, backend("vllm", 15, share=0.92, context=131072))[0].unplaced
    (tokens,) = [would for would in long.would if would.startswith("a context of ")]
    shorter = int(tokens.split()[3].replace(",", ""))
    assert proposed(one, backend("vllm", 15, share=0.92, context=shorter))[0].complete
    assert not proposed(one, backend("vllm", 15, share=0.92, context=shorter + 2048))[0].complete


def test_what_is_unknown_is_not_placed_and_what_needs_no_gpu_is_not_asked_about() -> None:
    one = Inventory(gpus=(card(0),))
    (mystery,) = proposed(one, backend("ollama", None))[0].unplaced
    assert mystery.reason == "what it needs is not known: not here"
    for change in ({"uses_gpu": False}, {"local": False}, {"needs": GpuNeeds(on_cpu=True)}):
        proposal, _ = proposed(one, msgspec.structs.replace(backend("x", 4), **change))
        assert proposal == Proposal()
    (broken,) = proposed(one, msgspec.structs.replace(backend("x", 4), problem="no model", fix="Set one."))[0].unplaced
    assert (broken.reason, broken.would) == ("no model", ("Set one.",))


def test_what_the_backends_use_now_is_there_to_be_given_out() -> None:
    runs = (GpuProcess(pid=7, name="p", memory=20 * GIB),)  # by the name of their plugin
    busy = card(0, used=20 * GIB, free=int(3.5 * GIB), processes=runs)
    proposal, known = proposed(Inventory(gpus=(busy,)), backend("vllm", 15, share=0.9))
    assert layout(proposal) == {"vllm": ("GPU-0",)}
    assert checked(proposal, Inventory(gpus=(busy,)), known).usable
    other = msgspec.structs.replace(busy, processes=(GpuProcess(pid=7, name="else", memory=20 * GIB),))
    assert not proposed(Inventory(gpus=(other,)), backend("vllm", 15, share=0.9))[0].complete
    known = {"vllm": backend("vllm", 15, share=0.9)}
    assert propose(Settings(), Inventory(gpus=(other,)), known, pids={7: "vllm"}, describe=placed_on).complete


def test_lost_hidden_and_divided_cards_are_left_out() -> None:
    instance = MigInstance(uuid="MIG-1", index=0, total=10 * GIB, free=10 * GIB, used=0)
    inventory = Inventory(
        gpus=(
            card(0, problem="lost"),
            card(1, hidden_by="CUDA_VISIBLE_DEVICES=2,3"),
            card(2, mig=True, instances=(instance,)),
            card(3, total=4),
        )
    )
    proposal, known = proposed(inventory, backend("ollama", 2))
    assert layout(proposal) == {"ollama": ("MIG-1",)}
    assert checked(proposal, inventory, known).usable


# -- on generated machines --------------------------------------------------------------------------------------------

sizes = st.sampled_from([8, 12, 16, 24, 24, 24, 40, 80, 80])


@st.composite
def machines(draw: st.DrawFn) -> Inventory:
    gpus = []
    for index in range(draw(st.integers(0, 8))):
        total = draw(sizes)
        used = draw(st.sampled_from([0.0, 0.0, 0.0, 0.3, 2.5, total - 1.0]))
        users = (GpuProcess(pid=1000 + index, name="other", memory=int(used * GIB)),) if used else ()
        kind = draw(st.sampled_from(["whole"] * 6 + ["mig", "lost", "hidden", "silent"]))
        fields: dict[str, Any] = {"used": int(used * GIB), "free": int((total - used - 0.5) * GIB), "processes": users}
        if kind == "mig":
            part = total * GIB // 4
            fields["mig"] = True
            fields["instances"] = tuple(
                MigInstance(uuid=f"MIG-{index}-{at}", index=at, name="part", total=part, free=part, used=0)
                for at in range(draw(st.integers(0, 3)))
            )
        elif kind == "lost":
            fields["problem"] = "lost"
        elif kind == "hidden":
            fields["hidden_by"] = "CUDA_VISIBLE_DEVICES"
        elif kind == "silent":
            fields |= {"total": None, "free": None, "used": None}
        gpus.append(msgspec.structs.replace(card(index, total), **fields))
    return Inventory(gpus=tuple(gpus))


@st.composite
def backends(draw: st.DrawFn) -> list[Known]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        found.append(
            backend(
                f"b{number}",
                draw(st.sampled_from([None, 0.1, 0.5, 2.0, 4.7, 8.0, 15.0, 30.0, 65.0, 140.0])),
                share=draw(st.sampled_from([None, 0.9, 0.92])),
                has=frozenset(draw(st.sets(st.sampled_from(list(Capability)), min_size=1))),
                heads=draw(st.sampled_from([(32, 8), (64, 8), (9, 3), (28, 4), (12, 1)])),
                context=draw(st.sampled_from([512, 4096, 32768, 131072])),
                fixed=draw(st.sampled_from([None, None, None, None, 2])),
            )
        )
    return found


def given_out(plan: Plan) -> None:
    """On no GPU is more given out than there is, the headroom left alone."""
    for row in plan.rows:
        if row.total is not None:
            claimed = sum(amount or 0 for amount in row.claims.values())
            if row.claims:
                assert claimed + (row.others or 0) + row.headroom <= row.total, row


@settings(max_examples=80, deadline=None)
@given(inventory=machines(), known=backends())
def test_a_proposal_always_passes_the_checks(inventory: Inventory, known: list[Known]) -> None:
    proposal, by_name = proposed(inventory, *known)
    found = [one.backend for one in proposal.placed] + [one.backend for one in proposal.unplaced]
    assert sorted(found) == sorted(by_name)
    assert all(one.would for one in proposal.unplaced if by_name[one.backend].models[0].facts is not None)
    plan = checked(proposal, inventory, by_name)
    assert not [str(one) for one in plan.findings if one.level == "error"]
    assert plan.verified
    given_out(plan)
    assert propose(Settings(), inventory, by_name, describe=placed_on) == proposal


@settings(max_examples=80, deadline=None)
@given(inventory=machines(), known=backends(), data=st.data())
def test_a_plan_that_passes_never_gives_out_more_than_there_is(
    inventory: Inventory, known: list[Known], data: st.DataObject
) -> None:
    names = [unit.uuid for unit in inventory.units() if unit.uuid] + [gpu.index for gpu in inventory.gpus]
    lines = []
    for one in known:
        gpus = data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
        unique = list(dict.fromkeys(gpus))
        memory = data.draw(st.sampled_from([None, 0.3, 0.5, 0.9, "4 GiB", "10 GiB", "20 GiB"]))
        lines.append(f"[gpu.assign.{one.backend}]\ncapabilities = []\ngpus = {unique!r}\n".replace("'", '"'))
        if memory is not None:
            lines.append(f"memory = {memory if isinstance(memory, float) else chr(34) + memory + chr(34)}\n")
    made = Settings.from_toml("".join(lines))

    placed = resolve(made.assignments, inventory)
    plan = make_plan(made, inventory, {one.backend: placed_on(one, placed[one.backend].devices) for one in known})
    if plan.usable:
        given_out(plan)
        for placement in plan.placements.values():
            ids = [gpu.id for gpu in placement.devices.gpus]
            assert len(ids) == len(set(ids))
            if inventory.gpus:
                assert placement.verified
