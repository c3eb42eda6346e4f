"""bert-jax plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from bert_jax.cli.pretrain import load_config, parse, print_usage
from bert_jax.cluster import hardware, plan
from bert_jax.cluster.plan import Device, Plan
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError

_USAGE = """usage: bert-jax plan CONFIG --devices N [--memory 16GB] [--hardware v5e] [--section.field VALUE ...]

Compute what a config needs on a cluster, on a machine without it. `bert-jax plan CONFIG --help` lists all options.

CONFIG is the Python file of an experiment, as for `bert-jax pretrain`, or the config.json of a run.

Example: bert-jax plan experiments/dynamic_masking.py --devices 256 --hardware v5e --mesh.fsdp 8
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compute what a config needs on a cluster: memory, time and network of a training step, on a machine without the cluster.

    The step is compiled for simulated devices, so layouts, memory and collectives are those of a real program. No run directory is
    created. If the config does not fit into --memory, changes to it are compiled until one fits.

    A run with phases has a plan for each of its parts.

    Example: bert-jax plan experiments/dynamic_masking.py --devices 256 --hardware v5e --mesh.fsdp 8
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    devices: int | None = None
    """Number of devices over all slices; None: the product of the mesh's axes, if mesh.data is given."""
    memory: str | None = None
    """Memory of a device, such as 16GB or 15.5GiB; None: that of --hardware."""
    hardware: str | None = None
    """Kind of device: v4, v5e, v5p, v6e, a100-40, a100-80, h100 or h200; memory and bfloat16 FLOP/s are those of its data sheet."""
    flops: float | None = None
    """Peak FLOP/s of a device in the dtype of the model; None: those of --hardware."""
    mfu: float = 0.4
    """Share of the peak that the arithmetic of the model is assumed to reach; `bert-jax bench` measures it."""
    search: bool = True
    """Try changes if the config does not fit."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if not arguments or arguments[0].startswith("-"):
        return print_usage(_USAGE, arguments)
    default = Options(load_config(Path(arguments[0])))
    options = parse(default, arguments[1:], prog=f"bert-jax plan {arguments[0]}")
    parts = options.config.parts()
    plans = []
    for (start, part), end in zip(parts, [*(start for start, _ in parts[1:]), options.config.train.steps], strict=True):
        config = dataclasses.replace(part, **_length_of_part(part, end - start)) if len(parts) > 1 else part
        found = plan.plan(config, _device(options), devices=_devices(options), search=options.search)
        plans.append({"start": start} | to_json(found) if len(parts) > 1 else to_json(found))
        if not options.json:
            print("\n".join([*([f"from step {start:,}"] if len(parts) > 1 else []), *summary(config, found)]), flush=True)
    if options.json:
        print(json.dumps(plans if len(parts) > 1 else plans[0], indent=2))
    return 0


def _length_of_part(config: Config, steps: int) -> dict[str, Any]:
    """Fields of a run that is as long as a part of one; its learning rate does not matter here."""
    train = dataclasses.replace(config.train, steps=steps)
    return {"train": train, "optim": dataclasses.replace(config.optim, warmup_steps=0)}


def _devices(options: Options) -> int:
    mesh: MeshConfig = options.config.mesh
    if options.devices is not None:
        return options.devices
    if mesh.data == -1:
        raise UserError("The number of devices is unknown; give --devices, or all axes of the mesh.")
    return mesh.slices * mesh.data * mesh.fsdp * mesh.tensor


def _device(options: Options) -> Device:
    known = hardware.find(options.hardware) if options.hardware else None
    memory, flops = hardware.parse_memory(options.memory) if options.memory else None, options.flops
    if known:
        memory = known.memory if memory is None else memory
        # Data sheets state the speed of bfloat16 products; full float32 products have another on every device.
        flops = known.flops if flops is None and options.config.model.dtype == "bfloat16" else flops
    return Device(memory, flops, options.mfu)


def summary(config: Config, found: Plan) -> list[str]:
    """Return lines with memory, arithmetic, time, network and padding, and what to change."""
    estimate, device, memory = found.estimate, found.device, found.estimate.memory
    mesh = " x ".join(f"{axis} {size}" for axis, size in estimate.mesh.items() if size > 1) or "1 device"
    parts = {"parameters": memory.parameters, "optimizer": memory.optimizer, "batch": memory.batch}
    parts |= {"activations, gradients": memory.temporary, "peak": memory.peak}
    limit = f" of {_megabytes(device.memory)}: {'fits' if found.fits else 'does not fit'}" if device.memory else ""
    return [
        f"{estimate.parameter_count:,} parameters on {found.devices} devices ({mesh}), {config.model.dtype}, "
        f"{config.data.batch_size} x {config.data.sequence_length} tokens",
        "memory of each device",
        *(f"  {name:24}{_megabytes(size)}{limit if name == 'peak' else ''}" for name, size in parts.items()),
        *_changes(found),
        "a step",
        f"  {'model':24}{estimate.flop / 1e12:,.3f} TFLOP, forward and backward",
        f"  {'recomputed':24}{estimate.recomputed / 1e12:,.3f} TFLOP",
        *(f"  {f'sent along {axis}':24}{_megabytes(size)} by each device" for axis, size in estimate.sent.items() if size),
        *_times(config, found),
        *_padding(found),
    ]


def _times(config: Config, found: Plan) -> list[str]:
    total, seconds, days = found.tokens_per_step * found.steps, found.seconds_per_step, found.days
    lines = [f"  {'tokens':24}{found.tokens_per_step:,.0f}", "the run", f"  {'tokens':24}{total:,.0f} in {found.steps:,} steps"]
    if seconds is None or days is None or found.device.flops is None:
        return [*lines, f"  {'time':24}unknown; give --flops, the peak of a device in {config.model.dtype}"]
    speed = f"{found.device.mfu:.0%} of {found.device.flops / 1e12:,.0f} TFLOP/s"
    return [*lines, f"  {'time':24}{days:,.2f} days, {1e3 * seconds:,.2f} ms a step at {speed}"]


def _changes(found: Plan) -> list[str]:
    tried = [
        f"  {trial.options:40}{_megabytes(trial.peak)}{': fits' if trial.fits else ''}"
        f"{'' if trial.same_result else ', another batch size and so another run'}"
        for trial in found.trials
    ]
    if not tried:
        return []
    last = [] if found.change else ["  None of these fits; use more devices, or a smaller model."]
    return ["changes", *tried, *last]


def _padding(found: Plan) -> list[str]:
    if found.padding is None:
        return []
    packed, unpacked = found.padding
    return ["padding", f"  {'of all slots':24}{1 - packed:.1%}; {1 - unpacked:.1%} with one example in each row"]


def to_json(found: Plan) -> dict[str, Any]:
    """A plan as JSON values; sizes are bytes, times seconds or days."""
    estimate, device, change = found.estimate, found.device, found.change
    return {
        "devices": found.devices,
        "mesh": estimate.mesh,
        "parameters": estimate.parameter_count,
        "memory": estimate.memory._asdict() | {"peak": estimate.memory.peak, "limit": device.memory, "fits": found.fits},
        "flop_per_step": estimate.flop,
        "recomputed_flop_per_step": estimate.recomputed,
        "peak_flops": device.flops,
        "mfu": device.mfu,
        "seconds_per_step": found.seconds_per_step,
        "days": found.days,
        "steps": found.steps,
        "tokens_per_step": found.tokens_per_step,
        "tokens": found.tokens_per_step * found.steps,
        "sent_bytes_per_step": estimate.sent,
        "collectives": [collective._asdict() for collective in estimate.collectives],
        "padding": None if found.padding is None else {name: 1 - share for name, share in found.padding._asdict().items()},
        "trials": [trial._asdict() for trial in found.trials],
        "change": None if change is None else change.options,
    }


def _megabytes(size: int | float) -> str:
    return f"{size / 1e6:,.1f} MB"
