"""Pretraining written a second time: BERT with its gradients, the optimizers and the schedules, in NumPy and float64.

Nothing is shared with the package but the names of the parameters. Gradients are derived by hand, and follow the programs that the
presets name: each replica's loss is a mean of its own, replicas are clipped before or after they are averaged, and LAMB's trust
ratio belongs to each matrix of each layer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import erf, logsumexp


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program computes; the values are written out here, not taken from the presets."""

    optimizer: str
    eps: float
    b2: float = 0.999
    decay_from: str = "zero"
    power: float = 1.0
    first: int = 0
    tanh_gelu: bool = False
    clip_each: bool = False
    replicas: int = 2
    added: float = -10000.0
    """What is added to the scores of padding."""
    in_weight: float = 0.0
    """What is added to the weight of the MLM loss."""


PROGRAMS = {
    "google2018": Program("bert_adam", 1e-6, clip_each=True, in_weight=1e-5),
    "google2020": Program("bert_adam", 1e-6, clip_each=True, in_weight=1e-5, tanh_gelu=True),
    "hf": Program("adamw", 1e-8, decay_from="peak", added=np.finfo(np.float32).min),
    "nvidia": Program("lamb", 1e-6, power=0.5, first=1),
    "modern": Program("adamw", 1e-6, b2=0.98, decay_from="peak", replicas=1, added=np.finfo(np.float32).min),
}


def rate(program, peak, warmup, steps, update):
    """The learning rate of an update, counted from 0."""
    step = update + program.first
    if step < warmup:
        return peak * step / warmup
    left = 1 - step / steps if program.decay_from == "zero" else (steps - step) / (steps - warmup)
    return peak * max(left, 0.0) ** program.power


def gelu(x, by_tanh):
    """GELU and its derivative."""
    if by_tanh:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        cdf = 0.5 * (1 + np.tanh(inner))
        slope = 0.5 * (1 - np.tanh(inner) ** 2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    else:
        cdf, slope = 0.5 * (1 + erf(x / np.sqrt(2))), np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return x * cdf, cdf + x * slope


def norm(p, x, eps):
    """Layer norm, and the function from the gradient of its result to that of its input and parameters."""
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    z = (x - x.mean(-1, keepdims=True)) / deviation

    def backward(dy):
        axes = tuple(range(dy.ndim - 1))
        dz = dy * p["scale"]
        dx = (dz - dz.mean(-1, keepdims=True) - z * (dz * z).mean(-1, keepdims=True)) / deviation
        return dx, {"scale": (dy * z).sum(axes), "bias": dy.sum(axes)}

    return z * p["scale"] + p["bias"], backward


def dense(p, x):
    """A product with a matrix, and its backward pass."""

    def backward(dy):
        flat, dflat = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return dy @ p["kernel"].T, {"kernel": flat.T @ dflat, "bias": dflat.sum(0)}

    return x @ p["kernel"] + p["bias"], backward


def flat(p, split):
    """Parameters of heads as one matrix: [D, H, K] and [H, K] as [D, HK] and [HK], or [H, K, D] as [HK, D]."""
    kernel = p["kernel"]
    shape = (kernel.shape[0], -1) if split else (-1, kernel.shape[-1])
    return {"kernel": kernel.reshape(shape), "bias": p["bias"].reshape(-1)}


def attend(p, x, visible, added, eps, heads):
    """Self-attention with its residual and norm, and its backward pass."""
    rows, length, width = x.shape

    def split(y):
        return y.reshape(rows, length, heads, -1).transpose(0, 2, 1, 3)

    def join(y):
        return y.transpose(0, 2, 1, 3).reshape(rows, length, -1)

    (q, dq_), (k, dk_), (v, dv_) = (dense(flat(p[name], True), x) for name in ("query", "key", "value"))
    q, k, v = split(q), split(k), split(v)
    scale = 1 / np.sqrt(width // heads)
    scores = q @ k.swapaxes(-1, -2) * scale + np.where(visible, 0.0, added)[:, None, None, :]
    weights = np.exp(scores - logsumexp(scores, -1, keepdims=True))
    mixed, d_out = dense(flat(p["output"], False), join(weights @ v))
    y, d_norm = norm(p["norm"], x + mixed, eps)

    def backward(dy):
        dsum, grads = d_norm(dy)
        dmixed, output = d_out(dsum)
        dmixed = split(dmixed)
        dweights = dmixed @ v.swapaxes(-1, -2)
        dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * scale
        dx, found = dsum, {"norm": grads, "output": output}
        for name, back, d in (
            ("query", dq_, dscores @ k),
            ("key", dk_, dscores.swapaxes(-1, -2) @ q),
            ("value", dv_, weights.swapaxes(-1, -2) @ dmixed),
        ):
            d, found[name] = back(join(d))
            dx = dx + d
        return dx, {name: {key: g.reshape(p[name][key].shape) for key, g in group.items()} for name, group in found.items()}

    return y, backward


def feed_forward(p, x, by_tanh, eps):
    """The feed-forward layer with its residual and norm, and its backward pass."""
    inner, d_inner = dense(p["inner"], x)
    active, slope = gelu(inner, by_tanh)
    outer, d_outer = dense(p["outer"], active)
    y, d_norm = norm(p["norm"], x + outer, eps)

    def backward(dy):
        dsum, norm_grads = d_norm(dy)
        dactive, outer_grads = d_outer(dsum)
        dx, inner_grads = d_inner(dactive * slope)
        return dsum + dx, {"inner": inner_grads, "outer": outer_grads, "norm": norm_grads}

    return y, backward


def layer_of(tree, number):
    return {name: layer_of(value, number) if isinstance(value, dict) else value[number] for name, value in tree.items()}


def stacked(trees):
    first = trees[0]
    return {
        name: stacked([tree[name] for tree in trees]) if isinstance(value, dict) else np.stack([tree[name] for tree in trees])
        for name, value in first.items()
    }


def loss_and_gradients(config, program, params, batch):
    """Loss of one replica, MLM and NSP means added, and its gradients."""
    eps, by_tanh = config.layer_norm_eps, program.tanh_gelu
    ids, types, visible = batch["input_ids"], batch["token_type_ids"], batch["segment_ids"] > 0
    bert, rows = params["bert"], np.arange(len(ids))[:, None]
    tables, length = bert["embeddings"], ids.shape[1]
    x, d_embeddings = norm(tables["norm"], tables["word"][ids] + tables["position"][:length] + tables["type"][types], eps)
    backwards = []
    for number in range(config.num_hidden_layers):
        layer = layer_of(bert["layers"], number)
        x, d_attention = attend(layer["attention"], x, visible, program.added, eps, config.num_attention_heads)
        x, d_ffn = feed_forward(layer["ffn"], x, by_tanh, eps)
        backwards.append((d_attention, d_ffn))

    # The MLM head, with the word embeddings as its output layer.
    mlm = params["mlm"]
    chosen = x[rows, batch["mlm_positions"]]
    transformed, d_dense = dense(mlm["dense"], chosen)
    active, slope = gelu(transformed, by_tanh)
    states, d_norm = norm(mlm["norm"], active, eps)
    logits = states @ tables["word"].T + mlm["bias"]
    log_p = logits - logsumexp(logits, -1, keepdims=True)
    weights, labels = batch["mlm_weights"], batch["mlm_ids"]
    total = weights.sum() + program.in_weight
    places = np.arange(labels.shape[1])
    loss = -(weights * log_p[rows, places, labels]).sum() / total
    dlogits = np.exp(log_p) * (weights / total)[..., None]
    dlogits[rows, places, labels] -= weights / total
    dstates = dlogits @ tables["word"]
    dactive, mlm_norm = d_norm(dstates)
    dchosen, mlm_dense = d_dense(dactive * slope)
    dword = np.einsum("bmv,bmd->vd", dlogits, states)

    # NSP on the first token.
    pooled, d_pool = dense(bert["pooler"], x[:, 0])
    pooled = np.tanh(pooled)
    pair, d_pair = dense(params["nsp"], pooled)
    log_p = pair - logsumexp(pair, -1, keepdims=True)
    targets = batch["nsp_labels"][:, 0]
    loss -= log_p[rows[:, 0], targets].mean()
    dpair = np.exp(log_p)
    dpair[rows[:, 0], targets] -= 1
    dpooled, nsp = d_pair(dpair / len(ids))
    dfirst, pooler = d_pool(dpooled * (1 - pooled**2))

    dx = np.zeros_like(x)
    np.add.at(dx, (rows, batch["mlm_positions"]), dchosen)
    dx[:, 0] += dfirst
    layers = []
    for d_attention, d_ffn in reversed(backwards):
        dx, ffn = d_ffn(dx)
        dx, attention = d_attention(dx)
        layers.append({"attention": attention, "ffn": ffn})
    dx, embedding_norm = d_embeddings(dx)
    np.add.at(dword, ids, dx)
    dtype, dposition = np.zeros_like(tables["type"]), np.zeros_like(tables["position"])
    np.add.at(dtype, types, dx)
    dposition[:length] = dx.sum(0)
    embeddings = {"word": dword, "position": dposition, "type": dtype, "norm": embedding_norm}
    bert_grads = {"embeddings": embeddings, "layers": stacked(layers[::-1]), "pooler": pooler}
    return loss, {"bert": bert_grads, "mlm": {"dense": mlm_dense, "norm": mlm_norm, "bias": dlogits.sum((0, 1))}, "nsp": nsp}


def named(tree, path=()):
    """Path -> array of every parameter."""
    found = {}
    for name, value in tree.items():
        found |= named(value, (*path, name)) if isinstance(value, dict) else {(*path, name): np.array(value, np.float64)}
    return found


def nested(arrays):
    tree = {}
    for path, value in arrays.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def clipped(grads):
    size = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {path: g / max(size, 1.0) for path, g in grads.items()}


def trajectory(config, program, params, batches, *, peak, warmup, weight_decay=0.01, b1=0.9):
    """The loss before each update, with gradients clipped at a norm of 1."""
    p = named(params)
    m, v = ({path: np.zeros_like(x) for path, x in p.items()} for _ in range(2))
    losses = []
    for update, batch in enumerate(batches):
        parts = [
            loss_and_gradients(
                config, program, nested(p), {name: value[replica :: program.replicas] for name, value in batch.items()}
            )
            for replica in range(program.replicas)
        ]
        losses.append(np.mean([loss for loss, _ in parts]))
        grads = [named(part) for _, part in parts]
        grads = [clipped(part) for part in grads] if program.clip_each else grads
        mean = {path: np.mean([part[path] for part in grads], 0) for path in p}
        mean = mean if program.clip_each else clipped(mean)
        step = rate(program, peak, warmup, len(batches), update)
        for path, x in p.items():
            m[path] = b1 * m[path] + (1 - b1) * mean[path]
            v[path] = program.b2 * v[path] + (1 - program.b2) * mean[path] ** 2
            corrections = (
                (1.0, 1.0) if program.optimizer == "bert_adam" else (1 - b1 ** (update + 1), 1 - program.b2 ** (update + 1))
            )
            change = m[path] / corrections[0] / (np.sqrt(v[path] / corrections[1]) + program.eps)
            if path[-1] != "bias" and "norm" not in path:
                change = change + weight_decay * x
                if program.optimizer == "lamb":
                    axes = tuple(range(1, x.ndim)) if "layers" in path else tuple(range(x.ndim))
                    sizes = [np.sqrt((part**2).sum(axes, keepdims=True)) for part in (x, change)]
                    change = change * np.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / np.maximum(sizes[1], 1e-300), 1.0)
            p[path] = x - step * change
    return np.array(losses)
