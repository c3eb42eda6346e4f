"""Write google_training/: a hundred losses of the original's own training on its own data files, and the model they start from.

    python make_google_training.py ORIGINAL google_records google_training

ORIGINAL is a checkout of google-research/bert at fe35475, its first release. Run with TensorFlow 2.21.0, Python 3.11 (2026-11-29).
The original's ``modeling.py``, ``run_pretraining.py`` and ``optimization.py`` are run as they are, on the CPU and without dropout;
functions that TensorFlow has removed since then (dense layers, layer norm in contrib) are implemented below.
"""

import json
import os
import sys
import types

import numpy as np
import tensorflow

tf = tensorflow.compat.v1
tf.disable_eager_execution()
STEPS, WARMUP, RATE, ROWS, LENGTH, PREDICTIONS = 100, 10, 1e-3, 8, 32, 5
CONFIG = {
    "vocab_size": 91,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "initializer_range": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


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


class TensorFlow(types.ModuleType):
    """TensorFlow 1 with what the original uses."""

    layers = types.SimpleNamespace(dense=dense)
    contrib = types.SimpleNamespace(layers=types.SimpleNamespace(layer_norm=layer_norm))

    def __getattr__(self, name):
        return getattr(tf, name)


def read(directory):
    """Arrays of all examples, in the order of the files."""
    kinds = {
        "input_ids": (LENGTH, tf.int64),
        "input_mask": (LENGTH, tf.int64),
        "segment_ids": (LENGTH, tf.int64),
        "masked_lm_positions": (PREDICTIONS, tf.int64),
        "masked_lm_ids": (PREDICTIONS, tf.int64),
        "masked_lm_weights": (PREDICTIONS, tf.float32),
        "next_sentence_labels": (1, tf.int64),
    }
    features = {name: tf.io.FixedLenFeature([size], kind) for name, (size, kind) in kinds.items()}
    files = [os.path.join(directory, f"uncased-{number}.tfrecord.gz") for number in range(3)]
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    iterator = tf.data.make_one_shot_iterator(records.map(lambda record: tf.io.parse_single_example(record, features)))
    following, examples = iterator.get_next(), []
    with tf.Session() as session:
        while True:
            try:
                examples.append(session.run(following))
            except tf.errors.OutOfRangeError:
                break
    arrays = {name: np.stack([example[name] for example in examples]) for name in kinds}
    return {name: array.astype("i4") if array.dtype == np.int64 else array for name, array in arrays.items()}


def main(original, records, out):
    sys.path.insert(0, original)
    sys.modules["tensorflow"] = TensorFlow("tensorflow")
    import modeling
    import optimization
    import run_pretraining

    arrays = read(records)
    places = {name: tf.placeholder(array.dtype, (ROWS, *array.shape[1:])) for name, array in arrays.items()}
    config = modeling.BertConfig.from_dict(CONFIG)
    tf.set_random_seed(0)
    model = modeling.BertModel(
        config, True, places["input_ids"], places["input_mask"], places["segment_ids"], use_one_hot_embeddings=False
    )
    positions, labels, weights = (places[f"masked_lm_{name}"] for name in ("positions", "ids", "weights"))
    mlm_loss, _, _ = run_pretraining.get_masked_lm_output(
        config, model.get_sequence_output(), model.get_embedding_table(), positions, labels, weights
    )
    nsp_loss, _, _ = run_pretraining.get_next_sentence_output(config, model.get_pooled_output(), places["next_sentence_labels"])
    loss = mlm_loss + nsp_loss
    variables = tf.trainable_variables()
    train = optimization.create_optimizer(loss, RATE, STEPS, WARMUP, False)
    os.makedirs(out)
    losses, batches = [], len(arrays["input_ids"]) // ROWS
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, os.path.join(out, "bert_model.ckpt"), write_meta_graph=False, write_state=False)
        for step in range(STEPS):
            rows = slice(step % batches * ROWS, (step % batches + 1) * ROWS)
            feed = {place: arrays[name][rows] for name, place in places.items()}
            # The loss before the update.
            losses.append(session.run(loss, feed))
            session.run(train, feed)
    with open(os.path.join(out, "bert_config.json"), "w") as file:
        json.dump(CONFIG, file, indent=2)
    np.save(os.path.join(out, "losses.npy"), np.array(losses, "f4"))
    print(batches, losses[:3], losses[-3:])


if __name__ == "__main__":
    main(*sys.argv[1:])
