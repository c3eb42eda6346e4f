"""Write google/: checkpoints of Google's own code, written by TensorFlow, with the outputs that the code computes.

    python make_google.py google

Run with TensorFlow 2.21.0 and the original's code in `bert-tensorflow==1.0.4` (2026-11-21). Functions that TensorFlow has removed
since then (dense layers, layer norm in contrib) are implemented below.
"""

import json
import os
import sys
import types

import numpy as np
import tensorflow

tf = tensorflow.compat.v1
tf.disable_eager_execution()


def dense(x, units, activation=None, name=None, kernel_initializer=None):
    with tf.variable_scope(name or "dense"):
        kernel = tf.get_variable("kernel", [x.shape[-1], units], initializer=kernel_initializer)
        y = tf.tensordot(x, kernel, [[len(x.shape) - 1], [0]]) + tf.get_variable(
            "bias", [units], initializer=tf.zeros_initializer()
        )
    return activation(y) if activation else y


def layer_norm(inputs, begin_norm_axis, begin_params_axis, scope):
    with tf.variable_scope(scope or "LayerNorm"):
        beta = tf.get_variable("beta", inputs.shape[-1:], initializer=tf.zeros_initializer())
        gamma = tf.get_variable("gamma", inputs.shape[-1:], initializer=tf.ones_initializer())
    mean, variance = tf.nn.moments(inputs, [-1], keepdims=True)
    return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)


contrib = sys.modules["tensorflow.contrib"] = types.ModuleType("tensorflow.contrib")
contrib.layers = types.SimpleNamespace(layer_norm=layer_norm)

from bert import modeling, run_pretraining  # noqa: E402 - Google's code imports the modules replaced above


class TensorFlow:
    """The module with `layers.dense`."""

    layers = types.SimpleNamespace(dense=dense)

    def __getattr__(self, name):
        return getattr(tf, name)


modeling.tf = run_pretraining.tf = TensorFlow()

CONFIG = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 11,
    "type_vocab_size": 3,
    "initializer_range": 0.3,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
out = sys.argv[1]
rng = np.random.default_rng(0)
ids, token_types = rng.integers(0, 37, (3, 9), np.int32), rng.integers(0, 3, (3, 9), np.int32)
mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int32)
positions = np.array([[1, 7], [3, 0], [0, 0]], np.int32)
config = modeling.BertConfig.from_dict(CONFIG)
model = modeling.BertModel(config, False, tf.constant(ids), tf.constant(mask), tf.constant(token_types))
_, _, mlm = run_pretraining.get_masked_lm_output(
    config,
    model.get_sequence_output(),
    model.get_embedding_table(),
    tf.constant(positions),
    tf.constant(positions),
    tf.ones([3, 2]),
)
_, _, nsp = run_pretraining.get_next_sentence_output(config, model.get_pooled_output(), tf.constant([0, 1, 0]))
fetch = {
    "hidden": tf.stack([model.get_embedding_output(), *model.get_all_encoder_layers()]),
    "pooled": model.get_pooled_output(),
    "mlm": mlm,
    "nsp": nsp,
}
weights = tf.trainable_variables()
for variable in weights:
    for slot in ("adam_m", "adam_v"):
        tf.get_variable(f"{variable.op.name}/{slot}", variable.shape)
tf.train.get_or_create_global_step()
with tf.variable_scope(""):
    classifier = [tf.get_variable("output_weights", [4, 12]), tf.get_variable("output_bias", [4])]
    span = [tf.get_variable("cls/squad/output_weights", [2, 12]), tf.get_variable("cls/squad/output_bias", [2])]
encoder = [variable for variable in weights if variable.op.name.startswith("bert/")]
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for variable in tf.global_variables():
        if variable.dtype.base_dtype == tf.float32:
            variable.load(rng.normal(0, 0.3, variable.shape).astype("f4") + variable.op.name.endswith("gamma"), session)
    outputs = session.run(fetch)
    pretraining = [variable for variable in tf.global_variables() if variable not in classifier + span]
    for name, variables in {"pretraining": pretraining, "classify": encoder + classifier, "span": encoder + span}.items():
        directory = os.path.join(out, name)
        os.makedirs(directory, exist_ok=True)
        tf.train.Saver(variables).save(
            session, os.path.join(directory, "bert_model.ckpt"), write_meta_graph=False, write_state=False
        )
        with open(os.path.join(directory, "bert_config.json"), "w") as file:
            json.dump(CONFIG, file, indent=2)
    values = {variable.op.name.replace("/", "|"): session.run(variable) for variable in classifier + span}
np.savez(os.path.join(out, "outputs.npz"), ids=ids, types=token_types, segments=mask, places=positions, **outputs, **values)
