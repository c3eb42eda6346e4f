"""Runs: resumed equals unbroken, stopped cleanly, refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax.cli.pretrain import report
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.data import pipeline, sources
from bert_jax.errors import RunError, UserError
from bert_jax.training import launchers, step, trainer
from bert_jax.training.logging import read_metrics
from bert_jax.training.pretraining import PretrainingJob, pretrain
from tests.runs import interrupt_at, is_measured


def final_state(config):
    """All arrays of the newest checkpoint, through the reader of any mesh."""
    checkpoints = bert_jax.checkpoints.Checkpoints(config.run)
    number = checkpoints.latest()
    optimizer = bert_jax.training.optimizers.make_optimizer(config.optim, config.train.steps)
    shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, meta = checkpoints.restore(bert_jax.checkpoints.abstract(shapes, jax.tree.map(lambda _: place, shapes)))
    checkpoints.close()
    assert int(state.step) == number
    return jax.device_get(state), meta


def assert_bit_equal(first, second):
    (state, meta), (other, other_meta) = final_state(first), final_state(second)
    jax.tree.map(np.testing.assert_array_equal, state, other)
    assert meta.data == other_meta.data


def elsewhere(config, tmp_path, name="other", **changes):
    return dataclasses.replace(config, run=str(tmp_path / name), **changes)


def test_a_run_reports_evaluates_saves_and_draws(run_config):
    result = pretrain(run_config)
    assert (result.step, result.signal) == (8, None)
    lines = read_metrics(run_config.run)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in lines if line["split"] == "held_out"] == [4, 8]
    train_line = lines[0]
    assert {
        "loss",
        "mlm_loss",
        "mlm_accuracy",
        "nsp_loss",
        "nsp_accuracy",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
    } <= set(train_line)
    # Rows are packed: more examples than rows, and few places left empty.
    assert np.mean([line["examples_per_step"] for line in lines if line["split"] == "train"]) > 16
    assert np.mean([line["fill"] for line in lines if line["split"] == "train"]) > 0.8
    assert train_line["learning_rate"] == 0
    assert abs(train_line["mask_rate"] - 0.15) < 0.02
    assert (train_line["dropped_predictions"], train_line["prediction_rate"]) == (0, train_line["mask_rate"])
    np.testing.assert_allclose(train_line["loss"], train_line["mlm_loss"] + train_line["nsp_loss"], rtol=1e-6)
    # An untrained model knows nothing: the loss is near that of a uniform guess over all tokens.
    assert abs(train_line["mlm_loss"] - np.log(run_config.model.vocab_size)) < 0.3
    run = epath.Path(run_config.run)
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((run / "tensorboard").iterdir())
    assert Config.from_json((run / "config.json").read_text()).mask == MaskPolicy()
    assert result.held_out["nsp_majority"] >= 0.5


RARITY = np.linspace(1, 2, 128)


@pytest.mark.parametrize(
    ("stop_at", "optimizer", "mask"),
    [
        (1, "bert_adam", MaskPolicy()),
        pytest.param(3, "muon", MaskPolicy(rate="adaptive(0.4, 0.1, 5, 3)", select="span"), marks=pytest.mark.slow),
        pytest.param(
            5,
            "schedule_free",
            MaskPolicy(
                rate=lambda step: 0.4 - step / 40,
                prediction_rate=0.1,
                token_weights=lambda batch: jax.numpy.asarray(RARITY)[batch["input_ids"]],
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interrupted_and_resumed_equals_unbroken_bit_for_bit(run_config, tmp_path, monkeypatch, stop_at, optimizer, mask, request):
    if optimizer != "bert_adam":
        # Once on eight devices is enough.
        request.getfixturevalue("quick")
    run_config = dataclasses.replace(run_config, optim=dataclasses.replace(run_config.optim, name=optimizer), mask=mask)
    unbroken = elsewhere(run_config, tmp_path)
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = pretrain(run_config)
    assert stopped.signal == signal.SIGTERM
    assert stop_at <= stopped.step <= stop_at + 2
    resumed = pretrain(run_config)
    assert (resumed.step, resumed.signal) == (8, None)
    assert_bit_equal(run_config, unbroken)
    first, second = (
        [{k: v for k, v in line.items() if not is_measured(k)} for line in read_metrics(c.run)] for c in (run_config, unbroken)
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "mask"),
    [
        ({"mesh": MeshConfig(2, 2, 2)}, MaskPolicy(rate="adaptive(0.4, 0.1, 5, 3)", select="t5", token_weights="pairs.tsv")),
        ({"parallel": "pmap"}, MaskPolicy(rate="adaptive(0.4, 0.1, 5, 3)", select="ngram", prediction_rate=0.1)),
    ],
)
def test_resumed_on_another_mesh_sees_the_same_batches_and_masks(run_config, tmp_path, monkeypatch, way, mask):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("alpha bravo\t5\ncharlie\t2\necho foxtrot\t3\ndelta\t0.5\n")
    run_config = dataclasses.replace(run_config, mask=mask)
    unbroken = elsewhere(run_config, tmp_path)
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert pretrain(run_config).signal == signal.SIGINT
    pretrain(dataclasses.replace(run_config, **way))
    for found, expected in zip(read_metrics(run_config.run), read_metrics(unbroken.run), strict=True):
        for name in ("step", "mlm_loss", "nsp_loss", "mlm_accuracy", "grad_norm", "mask_rate"):
            if name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, err_msg=name)


def test_a_complete_run_is_left_as_it_is(run_config, capsys):
    first = pretrain(run_config)
    before = read_metrics(run_config.run)
    again = pretrain(run_config)
    assert "is complete at step 8" in capsys.readouterr().err
    assert again.held_out == first.held_out
    assert read_metrics(run_config.run) == before


def stop_in_evaluations(patch):
    """Send SIGTERM at the beginning of every evaluation."""
    original = pipeline.eval_batches

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from original(*args, **kwargs)

    patch.setattr(pipeline, "eval_batches", interrupted)


def test_an_evaluation_stopped_by_a_signal_is_repeated_on_resume(run_config, tmp_path, monkeypatch, quick):
    unbroken = elsewhere(run_config, tmp_path)
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        stop_in_evaluations(patch)
        stopped = pretrain(run_config)
    assert stopped.signal == signal.SIGTERM
    assert stopped.step == 4
    assert pretrain(run_config).step == 8
    assert_bit_equal(run_config, unbroken)
    scored = [[line["step"] for line in read_metrics(c.run) if line["split"] == "held_out"] for c in (run_config, unbroken)]
    assert scored == [[4, 8], [4, 8]]


def test_a_signal_while_a_resumed_run_catches_up_stops_it(run_config, monkeypatch, quick):
    """The evaluation that was missing is abandoned again; no further step is taken."""
    run_config = dataclasses.replace(run_config, train=dataclasses.replace(run_config.train, eval_every=4, save_every=4))
    with monkeypatch.context() as patch:
        stop_in_evaluations(patch)
        for _ in range(2):
            stopped = pretrain(run_config)
            assert (stopped.signal, stopped.step) == (signal.SIGTERM, 4)
    assert pretrain(run_config).step == 8


def test_a_run_without_pairs_reports_no_nsp(run_config, capsys, quick):
    config = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, pairs=False))
    result = pretrain(config)
    lines = read_metrics(config.run)
    assert not [name for line in [*lines, result.held_out] for name in line if name.startswith("nsp")]
    assert all(line["loss"] == line["mlm_loss"] for line in lines)
    assert "NSP" not in capsys.readouterr().err + report(result, config.run)
    assert len(PretrainingJob.figure(types.SimpleNamespace(run_dir=config.run)).axes) == 2


def test_a_missing_evaluation_is_computed_on_resume(run_config, quick):
    pretrain(run_config)
    path = epath.Path(run_config.run) / "metrics.jsonl"
    whole = read_metrics(run_config.run)
    path.write_text("".join(json.dumps(line) + "\n" for line in whole[:-1]))
    (path.parent / "curves.png").unlink()
    pretrain(run_config)
    keep = [
        {name: value for name, value in line.items() if name != "seconds"} for line in (whole[-1], read_metrics(run_config.run)[-1])
    ]
    assert keep[0] == keep[1]
    assert (path.parent / "curves.png").exists()


def test_a_partly_written_config_does_not_lock_the_run(run_config, quick):
    path = epath.Path(run_config.run)
    path.mkdir()
    (path / ".config.json").write_text("{")
    assert pretrain(run_config).step == 8


def test_another_config_is_refused_except_for_free_fields(run_config, quick):
    pretrain(run_config)
    with pytest.raises(UserError, match=r"another config \(optim.peak_lr: 0.001 -> 0.01\)"):
        pretrain(dataclasses.replace(run_config, optim=dataclasses.replace(run_config.optim, peak_lr=0.01)))
    pretrain(dataclasses.replace(run_config, train=dataclasses.replace(run_config.train, keep=9, log_every=3)))


def test_another_corpus_is_refused(run_config, tmp_path, tokenizer, quick):
    pretrain(run_config)
    other = tmp_path / "other-corpus"
    bert_jax.data.building.write_corpus([["alpha bravo charlie.", "delta echo."]] * 40, other, tokenizer, held_out=0.1)
    changed = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, corpus=str(other)))
    with pytest.raises(UserError, match="started with other data"):
        pretrain(changed)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_path_that_is_not_a_run_is_refused(run_config, tmp_path, what):
    path = tmp_path / "taken"
    if what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not a run"):
        pretrain(dataclasses.replace(run_config, run=str(path)))


def test_a_vocabulary_larger_than_the_models_is_refused(run_config):
    small = dataclasses.replace(run_config, model=dataclasses.replace(run_config.model, vocab_size=20))
    with pytest.raises(UserError, match=r"but model.vocab_size is 20; use --model.vocab-size"):
        pretrain(small)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ({"rate": "linear(0.15, 1.2)"}, r"mask.rate is 1.06875 at step 7; it must lie in \[0, 1\]"),
        ({"rate": lambda step: jax.numpy.where(step > 4, jax.numpy.nan, 0.15)}, "mask.rate is nan at step 5"),
        ({"rate": "linear(0.4, 0.1)", "max_predictions": 9}, "13 predictions of 32 tokens, but mask.max_predictions is 9"),
        ({"token_weights": "{here}/none.tsv"}, "There is no file .*none.tsv of token weights"),
        (
            {"token_weights": "{here}/words.tsv"},
            "words.tsv, line 2: 'alpha 3' is not a token of the vocabulary .or two., a tab",
        ),
        ({"token_weights": "{here}/zero.tsv"}, "zero.tsv gives no token a weight above 0"),
        ({"token_weights": lambda batch: batch["input_ids"][0]}, r"<lambda> returns weights \[32\] for a batch of \[8, 32\]"),
        ({"token_weights": lambda batch: RARITY[batch["input_ids"]]}, "<lambda> cannot be compiled"),
    ],
)
def test_invalid_policies_are_refused_before_a_run(run_config, tmp_path, mask, sentence):
    (tmp_path / "words.tsv").write_text("alpha\t1\nalpha 3\n")
    (tmp_path / "zero.tsv").write_text("alpha\t0\n")
    if isinstance(mask.get("token_weights"), str):
        mask = {"token_weights": mask["token_weights"].format(here=tmp_path)}
    with pytest.raises(UserError, match=sentence):
        pretrain(dataclasses.replace(run_config, mask=MaskPolicy(**mask)))
    assert not epath.Path(run_config.run).exists()


@pytest.mark.parametrize(
    ("select", "sentences", "why"),
    [
        ("word", ["a b c d.", "e f g a b."], "every token begins a word"),
        ("span", ["abcdefg" * 9, "gfedcba" * 8], "as in text without word boundaries; use --mask.select token or t5"),
    ],
)
def test_policies_that_need_word_boundaries_are_refused_without_them(run_config, tmp_path, select, sentences, why):
    letters = bert_jax.tokenizers.train(lambda: ["abcdefg" * 2], kind="wordpiece", size=19)
    bert_jax.data.building.write_corpus([sentences] * 40, tmp_path / "letters", letters, held_out=0.1)
    data = dataclasses.replace(run_config.data, corpus=str(tmp_path / "letters"))
    with pytest.raises(UserError, match=why):
        pretrain(dataclasses.replace(run_config, data=data, mask=MaskPolicy(select=select)))


def test_functions_of_a_policy_may_not_change_on_resume(run_config, monkeypatch, quick):
    def config(**functions):
        return dataclasses.replace(run_config, mask=MaskPolicy(**functions))

    monkeypatch.setattr("bert_jax.training.pretraining.fit", lambda job, directory: trainer.Result(0, None, None))
    first = {"rate": lambda step, loss: 0.3 - step / 80, "token_weights": lambda batch: batch["input_ids"] + 1}
    pretrain(config(**first))
    pretrain(config(**first))
    for name, other in {"rate": lambda step, loss: 0.3 - step / 81, "token_weights": lambda batch: batch["input_ids"] + 2}.items():
        with pytest.raises(UserError, match=rf"mask\.{name}: "):
            pretrain(config(**first | {name: other}))


def test_ids_past_the_vocabulary_are_refused(run_config, monkeypatch, quick):
    original = pipeline.assemble

    def damaged(*args):
        batch = original(*args)
        batch["input_ids"][0, 3] = 10_000
        return batch

    monkeypatch.setattr(pipeline, "assemble", damaged)
    with pytest.raises(UserError, match=r"contains token id 10000; model.vocab_size is"):
        pretrain(run_config)


def test_a_batch_that_no_mesh_divides(run_config):
    with pytest.raises(UserError, match="batch_size 12 is not divisible by 8"):
        pretrain(dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, batch_size=12)))


def test_a_non_finite_loss_stops_the_run_and_leaves_the_last_good_checkpoint(run_config, monkeypatch, quick):
    original = step.make_train_step

    def poisoned(objective, optimizer, **options):
        inner = original(objective, optimizer, **options)

        def train_step(state, batch):
            state, metrics = inner(state, batch)
            bad = jax.numpy.where(state.step >= 6, jax.numpy.nan, 0.0)
            return state._replace(params=jax.tree.map(lambda x: x + bad, state.params)), {
                **metrics,
                "loss": metrics["loss"] + bad,
            }

        return train_step

    with monkeypatch.context() as patch:
        patch.setattr(step, "make_train_step", poisoned)
        with pytest.raises(RunError, match=r"loss is nan at step 6; the run stops. Step 4 is the last good checkpoint"):
            pretrain(run_config)
    state, _ = final_state(run_config)
    assert int(state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert pretrain(run_config).step == 8


@pytest.mark.slow
def test_a_model_learns_the_order_of_words(run_config):
    """In the made-up text each word follows from the one before it: far better than frequencies."""
    config = dataclasses.replace(
        run_config,
        model=dataclasses.replace(
            run_config.model, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        data=dataclasses.replace(run_config.data, batch_size=64),
        optim=OptimConfig(name="adamw", peak_lr=3e-3, warmup_steps=20),
        train=TrainConfig(steps=300, eval_every=300, save_every=300, log_every=50),
    )
    scores = pretrain(config).held_out
    assert scores["mlm_loss"] < scores["unigram_loss"] - 0.5


SCRIPT = """
import jax
jax.config.update("jax_num_cpu_devices", {devices})
import bert_jax
bert_jax.pretrain(bert_jax.Config.from_json({config!r}))
"""


def in_process(config, devices=1):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(config=config.to_json(), devices=devices)],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


def steps_logged(config):
    return len(read_metrics(config.run))


def kill_until_done(config, seed, kills, last):
    """Start the run again and again, each time killed at a random moment, then let it finish."""
    rng = random.Random(seed)
    for _ in range(kills):
        process = in_process(config)
        target = steps_logged(config) + rng.randint(1, 6)
        deadline = time.monotonic() + 120
        while steps_logged(config) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        process.stderr.close()
    finish(in_process(config))
    assert steps_logged(config) == last


def long_run(run_config):
    return dataclasses.replace(run_config, train=TrainConfig(steps=40, eval_every=40, save_every=1, log_every=1, keep=3))


def test_killed_and_started_again_equals_unbroken_bit_for_bit(run_config, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    unbroken = elsewhere(run_config, tmp_path)
    finish(in_process(unbroken))
    kill_until_done(run_config, seed=0, kills=1, last=10)
    assert_bit_equal(run_config, unbroken)


@pytest.mark.slow
def test_killed_many_times(run_config, tmp_path):
    config = long_run(run_config)
    unbroken = elsewhere(config, tmp_path)
    finish(in_process(unbroken))
    for seed in range(6):
        again = elsewhere(config, tmp_path, name=f"killed-{seed}")
        kill_until_done(again, seed=seed, kills=4, last=41)
        assert_bit_equal(again, unbroken)
        names = {path.name for path in (epath.Path(again.run) / "checkpoints").iterdir()}
        assert names == {"38", "39", "40"}


TWO_PROCESSES = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
import bert_jax
{patch}
bert_jax.pretrain(bert_jax.Config.from_json({config!r}))
"""


# Both processes end at once after step 5, when the checkpoint of step 4 is complete.
KILLED_AT_5 = """
import os
from bert_jax.training import trainer
original = trainer.Trainer.report
def report(self, done, *more):
    original(self, done, *more)
    if done == 5:
        self.checkpoints.wait()
        os._exit(9)
trainer.Trainer.report = report
"""


def in_two_processes(config, *, killed=False):
    """Run in two processes with two devices each."""
    source = TWO_PROCESSES.format(
        port=20_000 + random.randrange(20_000), config=config.to_json(), patch=KILLED_AT_5 if killed else ""
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", source, str(index)], stderr=subprocess.PIPE, text=True) for index in range(2)
    ]
    output = [process.communicate(timeout=300)[1] for process in processes]
    assert all((process.returncode != 0) == killed for process in processes), output


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_two_processes_train_as_one(run_config, tmp_path, parallel):
    """Two hosts with two devices each, killed and started again, reach the losses of one unbroken process with four devices."""
    unbroken = elsewhere(run_config, tmp_path)
    finish(in_process(unbroken, devices=4))
    config = dataclasses.replace(run_config, parallel=parallel)
    in_two_processes(config, killed=True)
    assert_stopped_after_step_4(config)
    in_two_processes(config)
    assert_close(config, unbroken)


@pytest.mark.slow
def test_a_pmapped_run_of_two_processes_is_resumed_by_one(run_config, tmp_path):
    unbroken = elsewhere(run_config, tmp_path)
    finish(in_process(unbroken, devices=4))
    in_two_processes(dataclasses.replace(run_config, parallel="pmap"), killed=True)
    assert_stopped_after_step_4(run_config)
    finish(in_process(run_config, devices=1))
    assert_close(run_config, unbroken)


def assert_stopped_after_step_4(config):
    assert max(int(path.name) for path in (epath.Path(config.run) / "checkpoints").iterdir()) == 4
    assert max(line["step"] for line in read_metrics(config.run)) == 5


def assert_close(config, unbroken):
    """All steps of both runs have the same losses, up to rounding."""
    lines = read_metrics(config.run)
    assert lines[-1]["step"] == config.train.steps
    for line, expected in zip(lines, read_metrics(unbroken.run), strict=True):
        for name in ("step", "mlm_loss", "nsp_loss", "grad_norm"):
            if name in expected:
                np.testing.assert_allclose(line[name], expected[name], rtol=2e-4, err_msg=name)


def test_metrics_of_a_killed_process_may_end_in_an_incomplete_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.slow
def test_other_optimizers_word_masking_and_other_attention(run_config, tmp_path, text, capsys):
    # Words of several tokens.
    few = bert_jax.tokenizers.train(lambda: text.read_text().splitlines(), kind="wordpiece", size=60)
    bert_jax.data.building.write_corpus(bert_jax.data.readers.read_documents([text]), tmp_path / "few", few, held_out=0.1)
    run_config = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, corpus=str(tmp_path / "few")))
    for name in ("adamw", "lamb"):
        config = dataclasses.replace(
            run_config,
            run=f"{run_config.run}-{name}",
            optim=dataclasses.replace(run_config.optim, name=name, accumulate=2),
            mask=MaskPolicy(select="word"),
            data=dataclasses.replace(run_config.data, pairs=name == "lamb"),
            train=TrainConfig(steps=3, eval_every=3, save_every=3, log_every=1),
        )
        if name == "adamw":
            model = dataclasses.replace(config.model, attention="xla", attention_probs_dropout_prob=0.0)
            config = dataclasses.replace(config, model=model)
        scores = pretrain(config).held_out
        assert np.isfinite(scores["loss"])
        assert ("nsp_loss" in scores) == (name != "adamw")
        # What computed attention in the run is not asked for where the model is used.
        assert bert_jax.load(config.run).config.attention == "auto"
        assert f"attention: {'xla' if name == 'adamw' else 'reference'}" in capsys.readouterr().err


def test_only_pmap_has_a_named_axis(run_config):
    assert launchers.launch(dataclasses.replace(run_config, parallel="pmap")).axis_name == "data"
    assert launchers.launch(run_config).axis_name is None


def test_a_run_of_words_keeps_the_checkpoints_of_its_points(run_config, corpus, quick, capsys):
    """The length and the points against the words of the batches themselves."""
    data = sources.Documents(corpus, run_config.data)
    batches = data.train_batches(seed=run_config.train.seed, rows=np.arange(16))
    words = np.cumsum([count_words(next(batches), corpus.tokenizer) for _ in range(12)])
    batches.close()
    train = TrainConfig(
        words=int(words[9]), save_at_words=f"{words[1]},{words[4]}", eval_every=100, save_every=4, keep=1, log_every=1
    )
    config = dataclasses.replace(run_config, train=train)
    assert abs(pretrain(config).step - 10) <= 1
    kept = {int(path.name) for path in (epath.Path(config.run) / "checkpoints").iterdir() if path.name.isdigit()}
    stored = Config.from_json((epath.Path(config.run) / "config.json").read_text()).train
    assert kept == {*stored.save_at, stored.steps}
    assert all(abs(step - expected) <= 1 for step, expected in zip(stored.save_at, (2, 5), strict=True))
    assert f"length: {stored.steps} steps; kept checkpoints: " in capsys.readouterr().err
    assert pretrain(config).step == stored.steps


def count_words(batch, tokenizer):
    """Words of a batch: in the made-up text, all that the tokenizer calls a word but the full stops."""
    segments, words, stop = batch["segment_ids"], batch["word_ids"], tokenizer.tokens.index(".")
    places = zip(*np.nonzero((words >= 0) & (batch["input_ids"] != stop)), strict=True)
    return len({(row, segments[row, place], words[row, place]) for row, place in places})


@pytest.mark.parametrize("packing", [1, 6])
def test_rates_are_those_of_the_batches(run_config, corpus, packing):
    config = dataclasses.replace(run_config.data, packing=packing)
    data = sources.Documents(corpus, config)
    rates = data.rates(seed=3)
    # Whole batches of the first epoch, on which they are measured.
    steps = int(1 / rates.epochs)
    batches = data.train_batches(seed=3, rows=np.arange(config.batch_size))
    taken = [next(batches) for _ in range(steps)]
    batches.close()
    assert abs(np.mean([(batch["segment_ids"] > 0).sum() for batch in taken]) / rates.tokens - 1) < 0.03
    assert abs(np.mean([count_words(batch, corpus.tokenizer) for batch in taken]) / rates.words - 1) < 0.03
