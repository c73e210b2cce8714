"""Several processes: one sum, noise once, everybody drawn alike; a dead process leaves a checkpoint for any number."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import distributed_jobs as jobs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from confide.contributors import Draw
from confide.errors import InputError
from confide.training import (
    Augmentation,
    Averaging,
    EngineOptions,
    Ensemble,
    Methods,
    PreviousDirection,
    Ranks,
    ShardedRun,
    Snapshots,
)
from confide.training.distributed import BlockNoise, share
from confide.training.distributed import noise as noise_module
from confide.training.distributed.sharded import ShardedEngine
from confide.training.distributed.shares import ranks_of_units

ALONE = Ranks()
SHARDED = partial(ShardedRun, smallest=1, options=EngineOptions(physical_batch=6))


def worlds(fast, slow):
    return [pytest.param(w, marks=() if w in fast else pytest.mark.slow) for w in (*fast, *slow)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every scenario in a single process; its checkpoint stands at step 4."""
    folder = tmp_path_factory.mktemp("one")
    return folder, jobs.everything(folder)


_CACHE = {}


@pytest.fixture(scope="module")
def several(tmp_path_factory, one):
    """Return a function: results of every process of a world, which went on from the checkpoint of one process."""

    def run(world, job="everything"):
        if world not in _CACHE:
            folder = tmp_path_factory.mktemp(f"world{world}")
            for name in ("checkpoint", "sharded", "ensemble"):
                (folder / name).write_bytes((one[0] / name).read_bytes())
            _CACHE[world] = folder, jobs.launch([jobs.everything, jobs.killed], world, folder)
        return _CACHE[world][0], _CACHE[world][1][job]

    yield run
    _CACHE.clear()


# -- who computes what -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shares_divide_the_draw_into_whole_contributors(data):
    people = data.draw(st.lists(st.integers(0, 20), max_size=30).map(sorted), label="contributor of each unit")
    sizes = [data.draw(st.integers(1, 6)) for _ in people]
    world = data.draw(st.integers(1, 8))
    n = sum(sizes)
    draw = Draw(3, np.arange(n) + 100, np.repeat(np.arange(len(people)), sizes), np.array(people, dtype=np.int64),
                np.random.default_rng(0).random(n))  # fmt: skip
    parts = [share(draw, rank, world) for rank in range(world)]
    assert sorted(np.concatenate([p.units for p in parts]).tolist()) == list(range(len(people)))
    owners = {}
    for rank, part in enumerate(parts):
        assert part.whole == len(people) and part.draw.step == 3
        for unit, whole in enumerate(part.units):
            mine, rows = part.draw.units == unit, draw.units == whole
            assert part.draw.entries[mine].tolist() == draw.entries[rows].tolist()
            assert part.draw.weights[mine].tolist() == draw.weights[rows].tolist()
            assert part.draw.contributors[unit] == draw.contributors[whole]
            assert owners.setdefault(int(draw.contributors[whole]), rank) == rank, "a contributor was split over ranks"
    loads = [len(p.draw) for p in parts]
    by_person = np.bincount(draw.contributors[draw.units], minlength=1) if n else np.zeros(1)
    # whoever has least is given the next (Graham: Bounds on multiprocessing timing anomalies, 1969, theorem 1)
    assert max(loads) <= n / world + (1 - 1 / world) * by_person.max() + 1e-9


def test_shares_are_balanced_by_entries_and_the_same_everywhere():
    sizes = [40, 9, 9, 9, 9, 4]
    draw = Draw(0, np.arange(80), np.repeat(np.arange(6), sizes), np.arange(6), np.ones(80))
    ranks = ranks_of_units(draw, 2)
    assert np.bincount(ranks, weights=sizes).tolist() == [40, 40]
    assert ranks.tolist() == ranks_of_units(draw, 2).tolist()


def test_one_process_sends_nothing():
    assert (ALONE.rank, ALONE.world, ALONE.first) == (0, 1, True)
    assert ALONE.from_first(lambda: 3) == 3 and ALONE.together(lambda: 4) == 4
    total = object()
    assert ALONE.total(total, None, None) is total


# -- the same run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_the_same_contributors_are_drawn_whatever_the_number_of_processes(one, several, world):
    for name, alone in one[1]["noiseless"].items():
        parts = [result["noiseless"][name]["drawn"] for result in several(world)[1]]
        for step, (people, entries) in enumerate(alone["drawn"]):
            assert sorted(p for part in parts for p in part[step][0]) == sorted(people)
            assert sorted(e for part in parts for e in part[step][1]) == sorted(entries)
            held = [set(part[step][0]) for part in parts]
            assert sum(map(len, held)) == len(set(people)), "a contributor was split over processes"
    assert any(len(people) > 3 for people, _ in one[1]["noiseless"]["contributor"]["drawn"])


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_the_update_without_noise_is_that_of_a_single_process(one, several, world):
    for name, alone in one[1]["noiseless"].items():
        for result in several(world)[1]:
            got = result["noiseless"][name]
            np.testing.assert_allclose(got["seen"], alone["seen"], rtol=1e-6, atol=1e-7)
            for figure in ("entries", "units"):
                assert got["internal"][figure] == alone["internal"][figure]
            np.testing.assert_allclose(
                np.array([q or [0] * 5 for q in got["internal"]["norm_quantiles"]]),
                np.array([q or [0] * 5 for q in alone["internal"]["norm_quantiles"]]),
                rtol=1e-5,
            )


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_processes_hold_the_same_noisy_gradient_bit_for_bit(several, world):
    first, *others = several(world)[1]
    for other in others:
        for name in ("empty", "secure", "variance"):
            assert first[name].tobytes() == other[name].tobytes()
        for name in first["start"]:
            assert torch.equal(first["start"][name], other["start"][name]), "processes began with other weights"


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_without_a_key_all_processes_share_the_secret_of_the_first(several, world):
    parts = [result["unseeded"] for result in several(world)[1]]
    for step, units in enumerate(parts[0]["internal"]["units"]):
        assert sum(len(part["drawn"][step][0]) for part in parts) == units
        assert len({p for part in parts for p in part["drawn"][step][0]}) == units


# -- the guarantee -----------------------------------------------------------------------------------------------------


def check_noise(values, steps):
    """Noise of standard deviation 1, as far as `steps` x 4000 values can tell."""
    assert values.shape == (steps, 4000)
    error = 1 / np.sqrt(2 * values.size)  # of the standard deviation
    assert abs(values.std() - 1) < 6 * error, f"standard deviation {values.std():.4f} of 1"
    assert abs(values.mean()) < 6 / np.sqrt(values.size)
    assert np.abs(values.std(axis=1) - 1).max() < 6 / np.sqrt(8000)
    halves = np.corrcoef(values[:, :2000].ravel(), values[:, 2000:].ravel())[0, 1]
    assert abs(halves) < 6 / np.sqrt(values.size / 2), "parts of the model share noise"


def test_the_variance_of_the_update_is_that_of_theory_for_one_process(one):
    check_noise(one[1]["variance"], 10)


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_the_variance_of_the_update_is_that_of_theory_for_several(several, world):
    for result in several(world)[1]:
        check_noise(result["variance"], 10)
        plan = jobs.plan_of()
        scale = plan.noise_multiplier * plan.clip_norm
        for name in ("empty", "secure"):
            values = result[name] / scale
            assert abs(values.std() - 1) < 6 / np.sqrt(2 * values.size)


@pytest.mark.slow
def test_the_variance_of_the_update_is_that_of_theory_for_eight(tmp_path):
    for result in jobs.launch([jobs.only_variance], 8, tmp_path, timeout=500)["only_variance"]:
        check_noise(result["variance"], 10)


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
def test_neighbours_differ_by_the_claimed_sensitivity_across_processes(one, several, world):
    results = [one[1]] if world == 1 else several(world)[1]
    largest = 0.0
    for result in results:
        for name, without in result["without"].items():
            plan = jobs.plan_of(name)
            for person, seen in without.items():
                full = result["noiseless"][name]
                # the others are drawn as before, so a step tells how many units of this person it held
                held = [
                    sum(r["noiseless"][name]["drawn"][step][0].count(person) for r in results)
                    for step in range(plan.steps)
                ]
                clip = plan.clip_norm * plan.class_of(jobs.COUNTS[person]).clip_norm
                moved = np.linalg.norm(full["seen"] - seen, axis=1)
                assert (moved <= np.array(held) * clip * (1 + 1e-6)).all()
                if plan.clip_unit == "contributor":
                    assert (moved <= clip * (1 + 1e-6)).all()
                    largest = max(largest, float(moved.max() / clip))
    assert largest > 0.99, "the bound is never reached, so the test shows nothing"


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
def test_each_member_of_an_ensemble_has_coins_and_noise_of_its_own_and_once(one, several, world):
    alone, results = one[1]["ensemble"], [one[1]] if world == 1 else several(world)[1]
    steps, plan = 3 * jobs.MEMBER_STEPS, jobs.plan_of()
    for result in results:
        found = result["ensemble"]
        # a process that noised for itself would give a standard deviation of the square root of their number
        noise = found["noise"] / (plan.noise_multiplier * plan.clip_norm)
        check_noise(noise, steps)
        likeness = np.corrcoef(noise) - np.eye(steps)
        assert np.abs(likeness).max() < 6 / np.sqrt(4000), "two steps, of one member or of two, share noise"
        np.testing.assert_allclose(noise, alone["noise"] / (plan.noise_multiplier * plan.clip_norm), rtol=1e-6)
    drawn = [sorted(p for result in results for p in result["ensemble"]["drawn"][step][0]) for step in range(steps)]
    assert drawn == [sorted(people) for people, _ in alone["drawn"]]
    coins = [drawn[member * jobs.MEMBER_STEPS : (member + 1) * jobs.MEMBER_STEPS] for member in range(3)]
    assert all(a != b for a, b in ((coins[0], coins[1]), (coins[1], coins[2]), (coins[0], coins[2])))


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_members_of_an_ensemble_are_those_of_a_single_process(one, several, world):
    folder, results = several(world)
    for result in results:
        assert len(result["ensemble"]["members"]) == 3
        for member, alone in zip(result["ensemble"]["members"], one[1]["ensemble"]["members"], strict=True):
            torch.testing.assert_close(member, alone, rtol=1e-4, atol=1e-5)
    members = torch.stack(one[1]["ensemble"]["members"])
    assert torch.pdist(members).min() > 0.01, "members cannot be told apart, so the test shows nothing"
    # begun by one process in the first member, gone on with by several in the second, ended by one
    whole, back = jobs.learned(methods=jobs.MEMBERS), jobs.learned(folder / "ensemble", resume=True,
                                                                  methods=jobs.MEMBERS)  # fmt: skip
    assert back.internal["units"] == whole.internal["units"]
    for found, wanted in zip(back.snapshots, whole.snapshots, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_a_person_with_a_gradient_that_is_not_finite_adds_nothing_anywhere(one, several, world):
    for result in several(world)[1]:
        got = result["broken"]
        assert np.isfinite(got["seen"]).all()
        assert got["internal"]["nonfinite"] == one[1]["broken"]["internal"]["nonfinite"] > 0
        np.testing.assert_allclose(got["seen"], one[1]["broken"]["seen"], rtol=1e-6, atol=1e-7)


# -- parts: exchange, noise by position, shards ------------------------------------------------------------------------


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
def test_an_exchange_adds_the_parts_and_noises_each_value_once(one, several, world):
    results = [one[1]] if world == 1 else several(world)[1]
    times = world * (world + 1) / 2  # 1 + 2 + ... of the ranks
    want = BlockNoise("default", jobs.KEY, 1, 0.5, 43).add(torch.arange(43, dtype=torch.float64) * times, 0)
    for result in results:
        torch.testing.assert_close(result["exchange"], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["default", "device", "secure"])
def test_noise_by_position_does_not_depend_on_who_asks_for_which_part(kind, monkeypatch):
    monkeypatch.setattr(noise_module, "BLOCK", 64)
    values = torch.linspace(-5, 5, 300, dtype=torch.float64)
    whole = BlockNoise(kind, jobs.KEY, 2, 3.0, 300).add(values, 0)
    for cuts in ([0, 300], [0, 1, 64, 65, 200, 300], [0, 100, 200, 300]):
        parts = [BlockNoise(kind, jobs.KEY, 2, 3.0, 300).add(values[a:b], a) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)
    assert len(set((whole - values).tolist())) == 300, "blocks repeat each other"
    other = BlockNoise(kind, jobs.KEY, 3, 3.0, 300).add(values, 0)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("kind", ["default", "device"])
def test_noise_by_position_has_the_scale_of_theory(kind):
    noise = BlockNoise(kind, jobs.KEY, 0, 0.8, 3 << 20)
    check = noise.add(torch.zeros(40_000, dtype=torch.float64), (1 << 20) - 20_000) / 0.8
    check_noise(check.numpy().reshape(10, 4000), 10)


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_noise_on_the_device_is_added_once_by_whoever_holds_the_part(one, several, world):
    plan = jobs.plan_of()
    check_noise(one[1]["device"] / (plan.noise_multiplier * plan.clip_norm), 4)
    for result in several(world)[1]:
        np.testing.assert_allclose(result["device"], one[1]["device"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result["device sums"], one[1]["device sums"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("world", worlds([2], [4]))
def test_a_model_in_shards_gives_the_sum_of_a_whole_one_with_noise_once(several, world):
    want, norms = jobs.whole_sum()
    noisy = BlockNoise("default", jobs.KEY, 3, 2.0, len(want)).add(want, 0)
    for result in several(world)[1]:
        found = result["shards"]
        np.testing.assert_allclose(found["norms"], norms[found["units"]], rtol=1e-5)
        assert found["nonfinite"] == 0 and found["empty"] == 0 and found["none"] == 0.0
        assert found["blocks"] >= 3, "the model was not cut into blocks"
        torch.testing.assert_close(found["sum"].double(), want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["noisy"].double(), noisy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["moments"].double(), 0.1 * noisy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
def test_a_run_in_shards_is_the_run_of_a_whole_model(one, several, world):
    for result in [one[1]] if world == 1 else several(world)[1]:
        for name, found in result["sharded"].items():
            alone = one[1]["noiseless"][name]
            scale = np.abs(alone["seen"]).max()
            np.testing.assert_allclose(found["seen"], alone["seen"], rtol=1e-4, atol=1e-4 * scale)
            for figure in ("entries", "units"):
                assert found["internal"][figure] == alone["internal"][figure]
            assert found["internal"]["nonfinite"] == 0
        # float32 sums: the noise is the same at every place, whoever drew it
        noisy, reference = result["sharded noise"], one[1]["sharded noise"]
        np.testing.assert_allclose(noisy, reference, rtol=1e-3, atol=1e-3)


def test_the_noise_of_a_run_in_shards_has_the_variance_of_theory(one, several):
    plan = jobs.plan_of("contributor", steps=10)
    whole = jobs.wide(jobs.plan_of(steps=3), run_key=jobs.KEY, noise=jobs.ZeroNoise())
    for result in [one[1], *several(2)[1]]:
        check_noise((result["sharded noise"] - whole) / (plan.noise_multiplier * plan.clip_norm), 3)


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_a_checkpoint_of_shards_moves_between_numbers_of_processes(several, world):
    whole = jobs.learned(make=SHARDED)
    back = jobs.learned(several(world)[0] / "sharded", resume=True, make=SHARDED)
    assert back.internal["units"] == whole.internal["units"]
    for name, value in whole.state_dict.items():
        torch.testing.assert_close(back.state_dict[name], value, rtol=1e-3, atol=1e-4)


def test_what_shards_cannot_do_is_refused_before_anything_is_drawn():
    with pytest.raises(InputError, match="physical batch"):
        jobs.learned(make=partial(ShardedRun, options=EngineOptions(physical_batch=2)))
    refused = {"averaging": Averaging(), "snapshots": Snapshots(), "sharpness": PreviousDirection()}
    for left in ({name: method} for name, method in {**refused, "ensemble": Ensemble(2)}.items()):
        with pytest.raises(InputError, match="averages, snapshots, moved weights"):
            jobs.learned(make=partial(SHARDED, methods=Methods(**left)))
    views = Methods(augmentation=Augmentation(views=2, transform=jobs.jitter))
    with pytest.raises(InputError, match="10 entries in a step"):
        jobs.learned(make=partial(ShardedRun, methods=views, options=EngineOptions(physical_batch=8)))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(InputError, match="share a weight"):
        ShardedEngine(tied, EngineOptions(engine="fast")).shard(Ranks(), torch.device("cpu"))


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
@pytest.mark.parametrize("kind", ["methods", "methods in shards"])
def test_methods_give_the_model_of_a_single_process(one, several, world, kind):
    for result in [one[1]] if world == 1 else several(world)[1]:
        for name, weights in result[kind].items():
            torch.testing.assert_close(weights, one[1]["methods"][name], rtol=1e-3, atol=1e-4, msg=name)
    found = one[1]["methods"]
    assert len({tuple(weights.tolist()) for weights in found.values()}) == len(jobs.METHODS), "a method does nothing"


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
def test_processes_for_which_nobody_was_drawn_change_nothing(one, several, world):
    for result in [one[1]] if world == 1 else several(world)[1]:
        for weights in result["few"]:
            torch.testing.assert_close(weights, one[1]["few"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", worlds([1, 2], [4]))
@pytest.mark.parametrize("kind", ["memory", "memory in shards"])
def test_memory_that_runs_out_in_one_process_changes_nothing_but_its_batches(one, several, world, kind):
    results = [one[1]] if world == 1 else several(world)[1]
    for rank, result in enumerate(results):
        for where, found in result[kind].items():
            torch.testing.assert_close(found["weights"], one[1]["memory"][None]["weights"], rtol=1e-4, atol=1e-5)
            starved = where is not None and rank == world - 1
            assert found["fits"] <= 5 if starved else found["fits"] == 64
            assert bool(found["said"]) == starved


# -- one voice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_all_processes_refuse_together(several, world):
    for result in several(world)[1]:
        found = {name: error and error[0] for name, error in result["errors"].items()}
        assert found == {
            "nonfinite": "RunError",
            "missing": "InputError",
            "data": "InputError",
            "start": "BudgetError",
            "disk": "RunError",
            "memory": "RunError",
        }
        assert "the entries of one contributor do not fit" in result["errors"]["memory"][1]
        assert "process" in result["errors"]["data"][1]


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_a_checkpoint_moves_from_one_process_to_several_and_back(one, several, world):
    whole = jobs.learned()
    folder, results = several(world)
    assert all(result["until"] is None for result in results)
    back = jobs.learned(folder / "checkpoint", resume=True)
    assert back.steps == whole.steps
    for figure in ("entries", "units"):
        assert back.internal[figure] == whole.internal[figure]
    for name, value in whole.state_dict.items():
        torch.testing.assert_close(back.state_dict[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", worlds([2], [4]))
def test_a_killed_process_stops_the_others_and_leaves_a_checkpoint(several, world):
    folder, (*others, dead) = several(world, "killed")
    assert dead is None
    for other in others:
        name, text = other["told"]
        assert name == "RunError" and "another process" in text and "--resume" in text
    whole, resumed = jobs.learned(), jobs.learned(folder / "killed", resume=True)
    assert resumed.internal["units"] == whole.internal["units"]
    for name, value in whole.state_dict.items():
        torch.testing.assert_close(resumed.state_dict[name], value, rtol=1e-4, atol=1e-5)
