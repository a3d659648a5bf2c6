"""Time a training step against the passes that it cannot do without.

    python benchmarks/training_step.py [--model NAME] [--batch N] [--rounds N] [--threads N] [--out FILE]

The baseline is one teacher forward at the source degree, and one student forward and backward at the target degree
with no compensator: the frozen weights get no gradient, the tokens that enter the first block do, so that the backward
pass goes through all blocks. The step is the trainer's own: the same passes with the compensator, its gradient, its
finiteness checks and AdamW. Every round draws two degrees and measures all variants at them, in random order; the
figure is the median over rounds of the ratio within a round; at most 1.05 is asked for. Beside the wall time stands the
processor time of this process, which other load on the machine changes little; with one thread the two are the same on
an idle machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, machine
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom import Compensator, compress, load_model
from tocom.system.files import write_json
from tocom.training.config import TrainingConfig
from tocom.training.distillation import LOSSES, Distillation, draw_degrees
from tocom.training.distributed import Processes
from tocom.training.run import Run, RunFiles

RESULT = RESULTS / "training_step.json"


def baseline(model: VisionTransformer, images: Tensor, source: int, target: int) -> None:
    with torch.no_grad():
        expected = compress(model, source)(images)
    student = compress(model, target)
    hook = student.blocks.register_forward_pre_hook(lambda _, inputs: (inputs[0].requires_grad_(),))
    try:
        LOSSES["kl"](student(images), expected).mean().backward()
    finally:
        hook.remove()


def make_step(model: VisionTransformer, config: TrainingConfig, *, checkpointing: bool) -> Callable[..., None]:
    compensator = Compensator.for_model(model, groups=config.groups, rank=config.rank).train()
    for name, parameter in compensator.named_parameters():
        if name.endswith("up"):  # as after some steps; zeros can be faster to multiply
            torch.nn.init.normal_(parameter, std=0.01)
    run = Run(
        model,
        compensator,
        [],
        config,
        loss="kl",
        teacher=None,
        files=RunFiles(),
        processes=Processes(),  # type: ignore[arg-type]
    )
    distill = Distillation(model, compensator, loss="kl", hidden=config.hidden, precision=config.precision)

    def step(images: Tensor, source: int, target: int) -> None:
        model.grad_checkpointing = checkpointing
        run.step(distill, torch.arange(len(images)), images, source, target)
        model.grad_checkpointing = False

    return step


def saved_bytes(model: VisionTransformer, work: Callable[[], None]) -> int:
    """Return the bytes of all distinct storages, but the model's own, that autograd keeps for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def against_baseline(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return per variant the median seconds, and median and quartiles of the ratio to the baseline in its round."""
    rows: dict[str, Any] = {}
    for variant, own in times.items():
        rows[variant] = {"median_s": round(statistics.median(own), 4)}
        if variant != "baseline":
            ratios = [a / b for a, b in zip(own, times["baseline"], strict=True)]
            cuts = statistics.quantiles(ratios, n=4)
            rows[variant]["ratio"] = dict(
                zip(("quartile_1", "median", "quartile_3"), (round(c, 4) for c in cuts), strict=True)
            )
    return rows


def measure(name: str, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = load_model(name, weights="random").model.requires_grad_(False)
    config = TrainingConfig(steps=1000, batch_size=batch, learning_rate=1e-6, seed=seed)
    images = torch.randn(batch, 3, *model.patch_embed.img_size)
    variants: dict[str, Callable[[Tensor, int, int], None]] = {
        "baseline": lambda images, source, target: baseline(model, images, source, target),
        "step": make_step(model, config, checkpointing=False),
        "step_with_activation_checkpointing": make_step(model, config, checkpointing=True),
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    processor: dict[str, list[float]] = {variant: [] for variant in variants}
    order = random.Random(seed)
    for index in range(-2, rounds):  # two to warm up
        source, target = draw_degrees(seed, index + 2, config.groups)
        for variant in order.sample(list(variants), len(variants)):
            begin, begin_processor = time.perf_counter(), time.process_time()
            variants[variant](images, source, target)
            if index >= 0:
                processor[variant].append(time.process_time() - begin_processor)
                seconds[variant].append(time.perf_counter() - begin)
    kept = {variant: saved_bytes(model, lambda work=work: work(images, 0, 8)) for variant, work in variants.items()}
    return {
        "model": name,
        "batch": batch,
        "groups": config.groups,
        "rank": config.rank,
        "rounds": rounds,
        "seed": seed,
        "wall_time": against_baseline(seconds),
        "processor_time": against_baseline(processor),
        "limit": 1.05,
        "kept_for_backward_bytes_at_degrees_0_to_8": kept,
        "machine": {**machine(), "threads": torch.get_num_threads()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.model, options.batch, options.rounds, options.seed)
    write_json(options.out, result)
    for kind in ("wall_time", "processor_time"):
        for variant, row in result[kind].items():
            if "ratio" in row:
                ratio = row["ratio"]
                spread = f"{ratio['quartile_1']} to {ratio['quartile_3']}"
                print(f"{kind}, {variant}: {ratio['median']} times the baseline (quartiles {spread})")


if __name__ == "__main__":
    main()
