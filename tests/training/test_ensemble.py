"""Several runs in one program are what they are one by one; one that fails is not all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax.errors import UserError
from bert_jax.inference.predictor import Asker
from bert_jax.tasks import registry
from bert_jax.training import ensemble
from bert_jax.training.finetuning import finetune
from bert_jax.training.logging import MEMBER, read_metrics
from tests.tasks.test_registry import config_of, lines_of, log_every_step, one_device, quickly_compiled, save_model, write_data
from tests.training.test_finetuning import equal, whole
from tests.training.test_pretraining import interrupt_at

# Two minutes of compilation.
pytestmark = pytest.mark.slow

# The second is no power of two times the first.
RATES = (1e-3, 3e-3)


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer, num_hidden_layers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify", train=48)


def devices(patch, count):
    """So many devices for groups of runs, which compile a program for each; meshes have one."""
    local = jax.local_devices()[:count]
    one_device(patch)
    patch.setattr(jax, "local_devices", lambda *args, **more: local)


def trained(init, data, run, *, task="classify", on=1, **changes):
    """Lines of a run of three steps with two scores, and its last state."""
    usual = {"epochs": 1.0, "eval_every": 0.7, "dropout": 0.2, "keep": 9}
    with pytest.MonkeyPatch.context() as patch:
        devices(patch, on)
        log_every_step(patch)
        state = whole(patch)
        finetune(config_of(task, init, data, run, **(usual | changes)))
        return lines_of(run, "train"), lines_of(run), state()


@pytest.fixture(scope="module")
def singles(tmp_path_factory, init, data):
    """Three of six runs, each alone, by their numbers."""
    path, found = tmp_path_factory.mktemp("singles"), {}
    for number in (0, 4, 5):
        rate, seed = RATES[number // 3], 5 + number % 3
        found[number] = trained(init, data, path / str(number), learning_rates=(rate,), seed=seed)
    return found


@pytest.fixture(scope="module")
def six(tmp_path_factory, init, data):
    """The same in one command."""
    run = tmp_path_factory.mktemp("six") / "run"
    return run, trained(init, data, run, learning_rates=RATES, seed=5, seeds=3, together=1)


def scores(lines):
    """The main scores of the members at each evaluation [steps, members]."""
    count = sum(name.startswith(MEMBER) for name in lines[0])
    return np.array([[line[f"{MEMBER}{number}"] for number in range(count)] for line in lines])


def states_of(state, together, count):
    return [ensemble.member(state, number, together=together, count=count) for number in range(count)]


def test_members_equal_single_runs_bit_for_bit(singles, six):
    _, (train, dev, state) = six
    for number, (lines, scored, alone) in singles.items():
        equal(states_of(state, 1, 6)[number], alone)
        assert [line[f"{MEMBER}{number}"] for line in dev] == [line["accuracy"] for line in scored]
        assert len(lines) == len(train) == 3
    # They are six different runs.
    assert len({float(jax.tree.leaves(each.params)[-1].sum()) for each in states_of(state, 1, 6)}) == 6


def test_what_is_logged_is_the_mean(singles, init, data, tmp_path):
    """Of two that were trained alone, too."""
    train, _, _ = trained(init, data, tmp_path / "run", learning_rates=(RATES[1],), seed=6, seeds=2, together=1)
    for name in ("loss", "accuracy", "grad_norm"):
        expected = np.mean([[line[name] for line in singles[number][0]] for number in (4, 5)], 0)
        np.testing.assert_allclose([line[name] for line in train], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory, init, data):
    """How many at a time -> lines of the six, their states, and the devices on which their groups were, of two."""

    @functools.cache
    def make(together):
        run, launch, seen = tmp_path_factory.mktemp("side") / "run", ensemble.launch, set()

        def watched(count, *, together):
            launcher = launch(count, together=together)

            def place(batch):
                placed = launcher.place(batch)
                seen.add(tuple(next(iter(group["ids"].devices())).id for group in placed))
                return placed

            return launcher._replace(place=place)

        with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(ensemble, "launch", watched)
            return *trained(init, data, run, on=2, learning_rates=RATES, seed=5, seeds=3, together=together), seen

    return make


@pytest.mark.parametrize("together", [2, 4])
def test_members_side_by_side_equal_single_runs(together, singles, side_by_side):
    """To 1e-5; of six, the last two are a group of their own. Groups take turns on the devices."""
    _, dev, state, seen = side_by_side(together)
    assert [jax.tree.leaves(group)[0].shape for group in state] == ([(2,)] * 3 if together == 2 else [(4,), (2,)])
    assert seen == ({(0, 1, 0)} if together == 2 else {(0, 1)})
    for number, (_, scored, alone) in singles.items():
        mine = states_of(state, together, 6)[number]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), mine.params, alone.params)
        np.testing.assert_array_equal(mine.key, alone.key)
        assert [line[f"{MEMBER}{number}"] for line in dev] == [line["accuracy"] for line in scored]


def test_the_best_member_is_kept_and_its_scores_are_shown(six, data, monkeypatch):
    run, (_, dev, state) = six
    for line, each in zip(dev, scores(dev), strict=True):
        assert line["accuracy"] == each.max()
        assert line["best_member"] == each.argmax()
    best = max(dev, key=lambda line: line["accuracy"])
    one_device(monkeypatch)
    found = Asker.load(run).evaluate(data)["dev"]
    assert found == {name: best[name] for name in ("accuracy", "macro_f1", "matthews")}
    assert best is dev[-1], "choose data where the last scores are the best"
    equal(bert_jax.load(run).params, states_of(state, 1, 6)[best["best_member"]].params)
    assert bert_jax.load(run).labels == ("no", "yes")


def test_the_best_of_all_evaluations_is_kept(init, data, tmp_path):
    """Of the second member, at its second score."""
    original, values = registry.split, iter([0.5, 0.2, 0.6, 0.1, 0.9, 0.3, 0.8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "split", lambda *args: original(*args)._replace(score=lambda _: {"accuracy": next(values)}))
        _, dev, state = trained(init, data, tmp_path / "run", seeds=2, together=1, eval_every=0.34)
    assert [(line["accuracy"], line["best_member"]) for line in dev] == [(0.6, 1), (0.9, 1), (0.8, 1)]
    path = tmp_path / "run" / "best" / "checkpoints"
    assert [entry.name for entry in path.iterdir() if entry.name.isdigit()] == ["2"]
    # It is that of neither the last step nor the other member.
    kept = bert_jax.load(tmp_path / "run").params
    for last in states_of(state, 1, 2):
        assert not np.array_equal(kept["classify"]["kernel"], last.params["classify"]["kernel"])


@pytest.mark.parametrize("together", [1, 4])
def test_interrupted_and_resumed_equals_unbroken_bit_for_bit(together, six, side_by_side, init, data, tmp_path, monkeypatch):
    changes = {"learning_rates": RATES, "seed": 5, "seeds": 3, "together": together, "on": 1 if together == 1 else 2}
    with contextlib.nullcontext() if together == 1 else quickly_compiled():
        unbroken = six[1] if together == 1 else side_by_side(together)
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
            stopped, scored, _ = trained(init, data, tmp_path / "run", **changes)
        assert (0 < len(stopped) < 3, len(scored) < 2) == (True, True)
        train, dev, state = trained(init, data, tmp_path / "run", **changes)
    equal(state, unbroken[2])
    assert (train, dev) == (unbroken[0], unbroken[1])


def test_a_run_goes_on_as_it_was_grouped(six, init, data):
    """Its checkpoints are divided so; how many are computed together on this machine is written down where it is not said."""
    run, (_, dev, _) = six
    changes = {"learning_rates": RATES, "seed": 5, "seeds": 3}
    with pytest.raises(UserError, match="together: 1 -> 4"):
        trained(init, data, run, together=4, **changes)
    assert trained(init, data, run, **changes)[1] == dev


# A rate at which weight decay alone makes numbers of any size in a few steps.
WILD = {"decay": "from_peak", "warmup": 0.0, "together": 1, "batch_size": 8, "dropout": 0.0}


@pytest.mark.parametrize("task", ["regress", "squad"])
def test_a_diverging_member_does_not_stop_the_others(task, init, tmp_path):
    """Whatever it is scored by; the mean loss is that of the others."""
    data = write_data(tmp_path / "data", task, train=48 if task == "regress" else 30)
    with quickly_compiled():
        train, dev, state = trained(init, data, tmp_path / "run", task=task, learning_rates=(1e-3, 2e9), **WILD)
        good, bad = states_of(state, 1, 2)
        assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bad.params))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.params))
        assert all(np.isfinite(line["loss"]) for line in train)
        assert np.isfinite(scores(dev)).all()
        if task == "regress":
            alone = trained(init, data, tmp_path / "alone", task=task, learning_rates=(1e-3,), **WILD)
            equal(good, alone[2])
            assert scores(dev)[:, 0].tolist() == [line[registry.main_score(task)] for line in alone[1]]
            assert train[-1]["loss"] == alone[0][-1]["loss"]


def test_a_diverged_member_is_never_the_best(tokenizer, tmp_path):
    """Without a number among its scores it says the first class always, which is right here; the other one says the second."""
    model = bert_jax.load(
        save_model(tmp_path / "model", tokenizer, heads={"classify": 2}, labels=("no", "yes"), num_hidden_layers=1)
    )
    model.params["classify"]["bias"] = jnp.array([0.0, 50.0])
    bert_jax.save(model, tmp_path / "biased", to="orbax")
    data = write_data(tmp_path / "data", "classify", train=48)
    (tmp_path / "data" / "dev.tsv").write_text("label\ttext\n" + "no\talpha bravo\n" * 15 + "yes\tgolf\n")
    with quickly_compiled():
        _, dev, _ = trained(tmp_path / "biased", data, tmp_path / "run", learning_rates=(1e-9, 2e9), **WILD)
    assert dev[-1][f"{MEMBER}0"] == 1 / 16
    assert dev[-1]["best_member"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bert_jax.load(tmp_path / "run").params))


def test_where_all_diverge_the_run_fails(init, data, tmp_path):
    with quickly_compiled(), pytest.raises(bert_jax.Failure, match=r"is (nan|inf) at step [2-6]; the run stops"):
        trained(init, data, tmp_path / "run", learning_rates=(2e9, 1e9), **WILD)


def test_one_seed_more_is_another_run(six, init, data, monkeypatch):
    devices(monkeypatch, 1)
    usual = config_of("classify", init, data, six[0], epochs=1.0, eval_every=0.7, dropout=0.2, keep=9)
    usual = dataclasses.replace(usual, learning_rates=RATES, seed=5, seeds=3, together=1)
    with pytest.raises(UserError, match="seeds: 3 -> 4"):
        finetune(dataclasses.replace(usual, seeds=4))
    before = read_metrics(six[0])
    assert finetune(usual).step == 3
    assert read_metrics(six[0]) == before


def test_a_run_that_has_no_score_yet_holds_no_model_to_use(init, data, tmp_path, monkeypatch):
    """It was stopped before; there are several models in it, and no best one."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        trained(init, data, tmp_path / "run", learning_rates=RATES, together=1, eval_every=1.0)
    assert not (epath.Path(tmp_path) / "run" / "best").exists()
    with pytest.raises(UserError):
        Asker.load(tmp_path / "run")


def test_groups():
    assert ensemble.groups(6, 4) == [range(0, 4), range(4, 6)]
    assert ensemble.groups(3, 1) == [range(0, 1), range(1, 2), range(2, 3)]
    assert ensemble.groups(2, 5) == [range(0, 2)]
    values = [{"a": np.arange(4) * 10}, {"a": np.int64(40)}]
    assert [int(ensemble.member(values, number, together=4, count=5)["a"]) for number in range(5)] == [0, 10, 20, 30, 40]


def test_as_many_as_memory_allows(monkeypatch):
    """Eight times its parameters for each; on a CPU, whose memory is not known, one."""

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 8 * 1000 * 3 + 100}

    assert ensemble.together(6, 1000) == 1
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert [ensemble.together(count, size) for count, size in ((6, 1000), (2, 1000), (6, 10_000))] == [3, 2, 1]


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="are for one process; start one command on each host"):
        ensemble.launch(3, together=1)
