"""nnU-Net's trainer with a schedule that ends at a moment in time; nnunet.py hands it to nnU-Net.

What differs from `nnUNetTrainer`, and why: nnU-Net decays its learning rate over 1000 epochs of 250 iterations, which
take days on two cores. Stopped early it would never see a small learning rate, and the comparison would be worthless.
Here the same polynomial (exponent 0.9) runs over the time that is left, set anew before each iteration, so that it
always completes. The 50 iterations of validation after each epoch are left out: fold `all` validates on training cases,
and the final weights are used either way. Network, loss, optimiser, sampling and augmentation are nnU-Net's.

Environment: BENCH_DEADLINE (seconds since 1970 when training has to end), BENCH_SEED, BENCH_RECORD (JSON to write).
"""

import json
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EXPONENT = 0.9
LAST_STEPS = 20
# Longest step that is reckoned with, in medians of the last ones: a single stall must not end the training.
MARGIN = 1.5


class TimedTrainer(nnUNetTrainer):
    def run_training(self) -> None:
        begin, deadline = time.time(), float(os.environ["BENCH_DEADLINE"])
        seed = int(os.environ["BENCH_SEED"])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what nnU-Net draws from
        torch.manual_seed(seed)
        self.on_train_start()
        self.network.train()
        first = time.time()
        steps, waits, losses, rate = [], [], [], self.initial_lr
        # A step that would end too late is not begun. One is done in any case: there has to be something to save.
        while not steps or time.time() + MARGIN * statistics.median(steps[-LAST_STEPS:]) < deadline:
            start = time.time()
            passed = min(max((start - first) / (deadline - first), 0.0), 1.0) if deadline > first else 0.0
            rate = self.initial_lr * (1 - passed) ** EXPONENT
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = next(self.dataloader_train)
            waits.append(time.time() - start)
            losses.append(float(self.train_step(batch)["loss"]))
            steps.append(time.time() - start)
            if len(steps) % LAST_STEPS == 0:
                lately = statistics.mean(losses[-LAST_STEPS:])
                self.print_to_log_file(f"{len(steps)} iterations, loss {lately:.3f}, learning rate {rate:.5f}")
        end = time.time()
        self.current_epoch = 1
        self.on_train_end()
        plan = self.configuration_manager
        record = {
            "iterations": len(steps),
            "start_s": first - begin,
            "iterate_s": end - first,
            "finish_s": time.time() - end,
            "step_s": statistics.median(steps),
            "wait_s": statistics.median(waits),
            "last_learning_rate": rate,
            "loss_of_last_iterations": statistics.mean(losses[-LAST_STEPS:]),
            "parameters": sum(one.numel() for one in self.network.parameters()),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "plan": {
                "network": plan.network_arch_class_name.rpartition(".")[2],
                "patch": [int(side) for side in plan.patch_size],
                "batch": int(plan.batch_size),
                "spacing_mm": [float(step) for step in plan.spacing],
                "features": [int(width) for width in plan.network_arch_init_kwargs["features_per_stage"]],
            },
        }
        Path(os.environ["BENCH_RECORD"]).write_text(json.dumps(record))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Not done: it would predict the training cases."""
