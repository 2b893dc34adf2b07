"""Plans: each check with a plan that it refuses, at the line that it is about, and the nearest one that it lets pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Capability
from llm_hub.gpu.checks import make_plan
from llm_hub.gpu.facts import KVLayers, ModelFacts
from llm_hub.gpu.inventory import Gpu, GpuProcess, Inventory, MigInstance
from llm_hub.gpu.known import Known, KnownModel
from llm_hub.gpu.plan import Finding, Plan, in_bytes
from llm_hub.launch import GpuNeeds
from llm_hub.settings import Settings

GIB = 1 << 30
TEXT, EMBEDDING, VISION = Capability.TEXT, Capability.EMBEDDING, Capability.VISION
ALL = frozenset({TEXT, EMBEDDING, VISION})


def card(index: int, *, total: int = 24, used: float = 0, **fields: Any) -> Gpu:
    """A card with sizes in GiB, of which the driver keeps half a one."""
    mine: dict[str, Any] = {
        "uuid": f"GPU-{index}{index}{index}{index}",
        "name": "card",
        "total": total * GIB,
        "used": int(used * GIB),
        "free": int((total - used - 0.5) * GIB),
    }
    return Gpu(index=index, **{**mine, **fields})


SLICES = tuple(MigInstance(uuid=f"MIG-{at}", index=at, total=10 * GIB, free=10 * GIB, used=0) for at in range(2))
TWO = Inventory(gpus=(card(0), card(1)))


def model(name: str, weights: float, *, heads: int = 32, kv_heads: int = 8) -> KnownModel:
    """A model of so many GiB, with 128 KiB for each token."""
    cache = (KVLayers(layers=32, elements=2 * 8 * 128, heads=kv_heads),)
    facts = ModelFacts(
        architecture="llama",
        layers=32,
        hidden=4096,
        intermediate=14336,
        vocabulary=1000,
        heads=heads,
        kv_heads=kv_heads,
        context_length=131072,
        weights=int(weights * GIB),
        cache=cache,
    )
    return KnownModel(name=name, facts=facts)


def vllm(weights: float = 15, *, share: float = 0.92, gpus: int = 1, **fields: Any) -> Known:
    needs = GpuNeeds(share=share, split="tensor", tensor_parallel=gpus, gpus=gpus, context=8192)
    known = Known(
        backend="vllm",
        plugin="vllm",
        offers=ALL,
        has_models=frozenset({TEXT}),
        needs=needs,
        models=(model("big", weights),),
    )
    return msgspec.structs.replace(known, **fields)


def ollama(weights: float = 4, *, name: str = "ollama", has: frozenset[Capability] = ALL) -> Known:
    needs = GpuNeeds(context=4096)
    return Known(
        backend=name, plugin="ollama", offers=ALL, has_models=has, needs=needs, models=(model("small", weights),)
    )


def plan(text: str, *known: Known, inventory: Inventory = TWO, **options: Any) -> Plan:
    settings = Settings.from_toml(text)
    return make_plan(settings, inventory, {one.backend: one for one in known}, **options)


def only(made: Plan, code: str) -> Finding:
    """The one finding with this code."""
    (finding,) = [one for one in made.findings if one.code == code]
    return finding


def errors(made: Plan) -> list[str]:
    return [one.code for one in made.findings if one.level == "error"]


GOOD = """\
[gpu.assign.vllm]
capabilities = ["text"]
gpus = [1]
memory = "20GiB"
exclusive = true
[gpu.assign.ollama]
capabilities = ["vision", "embedding"]
gpus = ["GPU-0000"]
"""


def test_the_layout_of_two_gpus_is_a_plan_and_pinned_by_uuid() -> None:
    made = plan(GOOD, vllm(share=20 / 24), ollama())
    assert made.findings == ()
    assert made.usable
    assert made.verified
    assert [gpu.id for gpu in made.devices("vllm").gpus] == ["GPU-1111"]
    assert made.devices("vllm").memory == 20 * GIB
    zero, one = made.rows
    assert one.claims == {"vllm": 20 * GIB}
    assert one.left == 24 * GIB - GIB // 2 - GIB // 2 - 20 * GIB
    assert made.placements["ollama"].claim.basis == "estimated"
    assert 4.9 * GIB < (zero.claims["ollama"] or 0) < 5.2 * GIB


# -- which GPUs are meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "inventory", "code", "said"),
    [
        ("[7]", TWO, "unknown-gpu", "there is no GPU 7 here"),
        ('["GPU-9999"]', TWO, "unknown-gpu", "there is no GPU 'GPU-9999' here"),
        ('["GPU-"]', TWO, None, ""),  # refused by the settings themselves
        ('["GPU-0000", "GPU-0"]', TWO, "duplicate-gpu", "GPU-0000 and GPU-0 are one and the same card"),
        ('[1, "GPU-1111"]', TWO, "duplicate-gpu", "index 1 and GPU-1111 are one and the same card"),
        ('["GPU-1"]', Inventory(gpus=(card(0, uuid="GPU-1a"), card(1, uuid="GPU-1b"))), "ambiguous-gpu", "2 UUIDs"),
        ("[0]", Inventory(gpus=(card(0, problem="the driver has lost it"),)), "lost-gpu", "the driver has lost it"),
        ("[0]", Inventory(gpus=(card(0, uuid=None, problem="lost"),)), "lost-gpu", "cannot be used: lost"),
        ("[0]", Inventory(gpus=(card(0, mig=True, instances=SLICES),)), "mig-card", "divided by MIG"),
        ("[0]", Inventory(gpus=(card(0, hidden_by="CUDA_VISIBLE_DEVICES=1"),)), "hidden-gpu", "CUDA_VISIBLE_DEVICES=1"),
        (
            '["MIG-0", "MIG-1"]',
            Inventory(gpus=(card(0, mig=True, instances=SLICES),)),
            "mig-parallel",
            "one instance only",
        ),
    ],
)
def test_a_gpu_that_cannot_be_meant_is_an_error_at_its_line(
    gpus: str, inventory: Inventory, code: str | None, said: str
) -> None:
    text = f"# first\n[gpu.assign.ollama]\nmemory = '1 GiB'\ngpus = {gpus}\n"
    if code is None:
        with pytest.raises(Exception, match="names no GPU"):
            Settings.from_toml(text)
        return
    made = plan(text, ollama(), inventory=inventory)
    finding = only(made, code)
    assert finding.level == "error"
    assert finding.where == "llm-hub.toml:4"
    assert said in finding.message
    assert not made.usable
    if code == "unknown-gpu":
        assert "0 = GPU-0000, 1 = GPU-1111" in finding.fix


def test_an_instance_of_mig_is_named_by_its_uuid() -> None:
    inventory = Inventory(gpus=(card(0, mig=True, instances=SLICES),))
    made = plan('[gpu.assign.ollama]\ngpus = ["MIG-1"]\n', ollama(), inventory=inventory)
    assert made.usable
    assert made.verified
    assert [row.gpu for row in made.rows if row.claims] == ["MIG-1"]


def test_where_no_gpu_is_seen_an_assignment_is_believed_and_left_as_it_was_written() -> None:
    made = plan('[gpu.assign.ollama]\ngpus = [3, "GPU-abc"]\n', ollama(), inventory=Inventory(reason="no driver"))
    assert [gpu.id for gpu in made.devices("ollama").gpus] == ["3", "GPU-abc"]
    assert made.usable
    assert not made.verified
    finding = only(made, "unverified")
    assert finding.level == "info"
    assert "no driver" in finding.message


# -- several GPUs -----------------------------------------------------------------------------------------------------


def test_what_is_wrong_whatever_the_cards_are_is_found_without_them() -> None:
    nothing = Inventory(reason="no driver")
    text = (
        "[gpu.assign.vllm]\ngpus = [0]\n{}\n[gpu.assign.ollama]\ngpus = [{}]\nmemory = {}\ncapabilities = ['vision']\n"
    )
    clash = only(plan(text.format("exclusive = true", 0, 0.05), vllm(), ollama(), inventory=nothing), "exclusive")
    assert clash.message == "ollama is put on GPU 0, which vllm has for itself (llm-hub.toml:3)"
    assert clash.where == "llm-hub.toml:5"
    over = only(plan(text.format("memory = 0.7", 0, 0.5), vllm(share=0.7), ollama(), inventory=nothing), "over-commit")
    assert over.message == "GPU 0 is given away more than once: vllm with 70% and ollama with 50%"
    assert over.where == "llm-hub.toml:6"
    by_itself = plan(text.format("", 0, 0.5), vllm(share=0.92), ollama(), inventory=nothing)
    assert "vllm with 92%" in only(by_itself, "over-commit").message
    for fine in (("memory = 0.5", 0, 0.5), ("exclusive = true", 1, 0.5), ("memory = '20GiB'", 0, 0.5)):
        assert plan(text.format(*fine), vllm(), ollama(), inventory=nothing).usable, fine


def test_tensor_parallelism_needs_as_many_gpus_as_it_has_parts_and_heads_that_divide() -> None:
    text = "[gpu.assign.vllm]\ncapabilities = ['text']\ngpus = [0, 1]\n"
    assert plan(text, vllm(30, gpus=2)).usable
    assert "is started for 4 GPUs" in only(plan(text, vllm(30, gpus=4)), "parallel-count").message
    odd = vllm(30, gpus=2, models=(model("odd", 30, heads=9, kv_heads=3),))
    assert "odd has 9 heads, which 2 does not divide" in only(plan(text, odd), "heads").message
    shared = vllm(30, gpus=2, models=(model("shared", 30, heads=12, kv_heads=3),))
    assert "3 heads for keys and values" in only(plan(text, shared), "heads").message
    one = vllm(30, gpus=2, models=(model("one", 30, heads=12, kv_heads=1),))
    assert "heads" not in errors(plan(text, one))  # both hold the same head
    mixed = Inventory(gpus=(card(0), card(1, total=48)))
    made = plan(text, vllm(30, gpus=2), inventory=mixed)
    assert only(made, "mixed-sizes").level == "warning"
    # A share is taken of each card's own size.
    assert made.placements["vllm"].claim.amounts == {
        "GPU-0000": int(24 * GIB * 0.92),
        "GPU-1111": int(48 * GIB * 0.92),
    }


def test_layers_may_be_spread_over_any_number() -> None:
    odd = msgspec.structs.replace(ollama(), models=(model("odd", 30, heads=9),))
    three = Inventory(gpus=(card(0), card(1), card(2)))
    assert plan("[gpu.assign.ollama]\ngpus = [0, 1, 2]\n", odd, inventory=three).usable


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_a_capability_that_the_plugin_does_not_offer_is_an_error() -> None:
    wordy = msgspec.structs.replace(ollama(), offers=frozenset({TEXT}))
    finding = only(plan("[gpu.assign.ollama]\ngpus = [0]\ncapabilities = ['text', 'vision']\n", wordy), "capability")
    assert finding.where == "llm-hub.toml:3"
    assert "assigned for vision, and its plugin 'ollama' offers text" in finding.message
    without = ollama(has=frozenset({TEXT}))
    assert (
        only(plan("[gpu.assign.ollama]\ngpus = [0]\ncapabilities = ['vision']\n", without), "no-model").level
        == "warning"
    )


def test_two_backends_for_one_capability_need_an_order() -> None:
    text = "[gpu.assign.vllm]\ngpus = [1]\ncapabilities = ['text']\n[gpu.assign.ollama]\ngpus = [0]\ncapabilities = ['text']\n"
    finding = only(plan(text, vllm(), ollama()), "no-order")
    assert finding.where == "llm-hub.toml:6"
    assert "llm-hub.toml:3" in finding.message
    assert finding.fix == 'Say it: [routes] text = ["vllm", "ollama"]'
    assert plan(f'{text}[routes]\ntext = ["ollama", "vllm"]\n', vllm(), ollama()).usable
    settings = Settings.from_toml(text, environ={"LLM_TEXT_PROVIDER": "vllm"})
    assert make_plan(settings, TWO, {"vllm": vllm(), "ollama": ollama()}).usable
    settings = Settings.from_toml(text, environ={"LLM_PROVIDER": "vllm"})
    assert make_plan(settings, TWO, {"vllm": vllm(has_models=frozenset({TEXT})), "ollama": ollama()}).usable
    only(make_plan(settings, TWO, {"vllm": vllm(has_models=frozenset({VISION})), "ollama": ollama()}), "no-order")


def test_a_backend_that_cannot_be_started_is_an_error_with_its_own_words() -> None:
    broken = vllm(problem="names no model", fix="Set models.")
    finding = only(plan("[gpu.assign.vllm]\ngpus = [0]\n", broken), "backend")
    assert (finding.message, finding.fix, finding.where) == ("vllm: names no model", "Set models.", "llm-hub.toml:1")


# -- alone ------------------------------------------------------------------------------------------------------------


def test_what_has_a_gpu_for_itself_shares_it_with_none() -> None:
    text = "[gpu.assign.vllm]\ngpus = [1]\nexclusive = true\nmemory = 0.5\ncapabilities = []\n[gpu.assign.ollama]\ngpus = ['GPU-1111']\n"
    finding = only(plan(text, vllm(8, share=0.5), ollama()), "exclusive")
    assert finding.where == "llm-hub.toml:7"
    assert "ollama is put on GPU 1, which vllm has for itself (llm-hub.toml:3)" in finding.message
    both = text.replace("gpus = ['GPU-1111']", "gpus = ['GPU-1111']\nexclusive = true")
    assert only(plan(both, vllm(8, share=0.5), ollama()), "exclusive").backend == "ollama"
    assert plan(text.replace("exclusive = true", "exclusive = false"), vllm(8, share=0.5), ollama()).usable


def test_others_on_a_gpu_that_a_backend_has_for_itself_are_named() -> None:
    busy = card(0, used=2, processes=(GpuProcess(pid=7, name="jupyter", memory=2 * GIB),))
    text = "[gpu.assign.ollama]\ngpus = [0]\nexclusive = true\n"
    made = plan(text, ollama(), inventory=Inventory(gpus=(busy,)))
    assert "used by jupyter (pid 7)" in only(made, "not-alone").message
    assert made.usable
    own = msgspec.structs.replace(busy, processes=(GpuProcess(pid=7, name="ollama/llama-server", memory=2 * GIB),))
    assert plan(text, ollama(), inventory=Inventory(gpus=(own,))).findings == ()


# -- whether it fits --------------------------------------------------------------------------------------------------


def test_claims_and_others_and_the_headroom_must_fit() -> None:
    text = "[gpu.assign.ollama]\ngpus = [0]\nmemory = '{} GiB'\n[gpu.assign.tiny]\ngpus = [0]\nmemory = '3 GiB'\ncapabilities = []\n"
    busy = Inventory(gpus=(card(0, used=4, processes=(GpuProcess(pid=7, memory=4 * GIB),)),))
    # 24 = 4 of others + 0.5 of the driver + 0.5 of headroom + 3 + 16
    assert plan(text.format(16), ollama(), ollama(1, name="tiny"), inventory=busy).usable
    made = plan(text.format("16.1"), ollama(), ollama(1, name="tiny"), inventory=busy)
    finding = only(made, "over-commit")
    assert finding.where == "llm-hub.toml:6"
    for part in (
        "GPU 0 has 24.0 GiB",
        "ollama with 16.1 GiB",
        "tiny with 3.0 GiB",
        "4.5 GiB in use by others",
        "102 MiB too much",
    ):
        assert part in finding.message
    roomy = plan("[gpu]\nheadroom = '2 GiB'\n" + text.format(16), ollama(), ollama(1, name="tiny"), inventory=busy)
    assert "over-commit" in errors(roomy)


def test_a_backend_that_runs_already_is_not_counted_twice() -> None:
    runs = (GpuProcess(pid=7, name="ollama", memory=20 * GIB),)
    text = "[gpu.assign.ollama]\ngpus = [0]\nmemory = '22 GiB'\n"
    full = Inventory(gpus=(card(0, used=20, processes=runs),))
    assert plan(text, ollama(), inventory=full).usable
    strange = Inventory(gpus=(card(0, used=20, processes=(GpuProcess(pid=7, name="python", memory=20 * GIB),)),))
    assert errors(plan(text, ollama(), inventory=strange)) == ["over-commit"]
    assert plan(text, ollama(), inventory=strange, pids={7: "ollama"}).usable
    # On a card that it is not meant for, it is in the way.
    other = "[gpu.assign.ollama]\ngpus = [1]\n[gpu.assign.tiny]\ngpus = [0]\nmemory = '22 GiB'\ncapabilities = []\n"
    two = Inventory(gpus=(*strange.gpus, card(1)))
    assert "over-commit" in errors(plan(other, ollama(), ollama(1, name="tiny"), inventory=two, pids={7: "ollama"}))
    # Where the driver tells no process's memory, but all are its own, all that is in use is its own.
    silent = Inventory(gpus=(card(0, used=20, processes=(GpuProcess(pid=7, name="ollama"),)),))
    assert plan(text, ollama(), inventory=silent).usable


def test_the_share_of_vllm_is_of_the_whole_and_must_be_free() -> None:
    text = "[gpu.assign.vllm]\ngpus = [0]\ncapabilities = ['text']\n"
    assert plan(text, vllm()).usable  # what it takes by itself, of an empty card
    busy = Inventory(gpus=(card(0, used=4, processes=(GpuProcess(pid=7, memory=4 * GIB),)),))
    made = plan(text, vllm(), inventory=busy)
    assert errors(made) == ["share"]
    finding = only(made, "share")
    assert (
        "takes 22.1 GiB of GPU 0 (92% of each, which its server takes by itself), and only 19.5 GiB of 24.0 GiB"
        in finding.message
    )
    assert finding.fix.startswith("Set memory = 0.79 in [gpu.assign.vllm], or stop what uses 4.5 GiB of it")
    assert plan(f"{text}memory = 0.79\n", vllm(share=0.79), inventory=busy).usable


def test_the_models_of_a_backend_must_fit_into_what_it_has() -> None:
    text = "[gpu.assign.vllm]\ngpus = [0]\ncapabilities = ['text']\nmemory = '{} GiB'\n"
    assert plan(text.format(17), vllm(15, share=17 / 24)).findings == ()
    tight = plan(text.format(16.4), vllm(15, share=16.4 / 24))
    assert only(tight, "tight").level == "warning"
    small = only(plan(text.format(15.5), vllm(15, share=15.5 / 24)), "too-small")
    assert small.level == "error"
    assert small.where == "llm-hub.toml:4"
    assert "its weights and the tokens of 8,192 in one call alone need 16.0 GiB" in small.message


def test_what_is_not_known_is_said_and_not_guessed() -> None:
    unknown = Known(
        backend="ollama",
        plugin="ollama",
        offers=ALL,
        models=(KnownModel(name="x", reason="not here", hint="ollama pull x"),),
    )
    made = plan("[gpu.assign.ollama]\ngpus = [0]\n", unknown)
    finding = only(made, "memory-unknown")
    assert (finding.level, finding.fix) == ("warning", "ollama pull x")
    assert made.rows[0].claims == {"ollama": None}
    assert plan("[gpu.assign.ollama]\ngpus = [0]\nmemory = '5 GiB'\n", unknown).findings == ()
    blind = Inventory(gpus=(Gpu(index=0, uuid="GPU-0000"),))
    assert only(plan("[gpu.assign.ollama]\ngpus = [0]\n", ollama(), inventory=blind), "size-unknown").level == "warning"


def test_what_follows_one_another_must_fit_side_by_side() -> None:
    text = (
        "[routes]\ntext = ['vllm', 'ollama']\n"
        "[gpu.assign.vllm]\ngpus = [0]\nmemory = 0.7\n[gpu.assign.ollama]\ngpus = [{}]\nmemory = '10 GiB'\n"
    )
    made = plan(text.format(0), vllm(share=0.7), ollama())
    finding = only(made, "switch")
    assert "text cannot be switched between vllm and ollama" in finding.message
    assert finding.where == "llm-hub.toml:7"
    assert finding.gpu == "GPU-0000"
    apart = plan(text.format(1), vllm(share=0.7), ollama())
    assert apart.usable


def test_what_could_go_anywhere_and_what_stays_on_the_cpu_is_said() -> None:
    text = "[backends.ollama]\n[gpu.assign.vllm]\ngpus = [1]\n"
    finding = only(plan(text, vllm(), ollama()), "unassigned")
    assert (finding.level, finding.where) == ("info", "llm-hub.toml:1")
    remote = msgspec.structs.replace(ollama(), local=False)
    assert plan(text, vllm(), remote).findings == ()
    cpu = msgspec.structs.replace(ollama(), needs=GpuNeeds(on_cpu=True))
    assert plan(text, vllm(), cpu).findings == ()
    assert only(plan("[gpu.assign.ollama]\ngpus = [0]\n", cpu), "on-cpu").level == "warning"


@pytest.mark.parametrize(
    ("text", "size"), [("20GiB", 20 * GIB), ("20 GB", 20 * 10**9), ("1.5 TiB", 1536 * GIB), ("512 MiB", GIB // 2)]
)
def test_amounts_are_read_as_they_are_written(text: str, size: int) -> None:
    assert in_bytes(text) == size
