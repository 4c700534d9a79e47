"""Sliding-window segmentation: ours against MONAI's ``sliding_window_inference``, with the same network and weights.

A small 3-D U-Net (MONAI's DynUNet, 1.4 million parameters) is trained for a few steps on synthetic chest CT, then
segments whole volumes. Each engine runs in its own process; compared are time, memory beyond the volume, and the Dice
of every structure against the truth of the phantom and against MONAI's mask::

    python benchmarks/sliding_window.py --sides 256,256,256 400,512,512 --json bench/sliding_window.json
    python benchmarks/sliding_window.py --sides 96,96,96 --patch 48 --steps 40

Volume, weights and results of engines are kept in the folder ``--work``; only the last are made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

NAMES = ("background", "soft tissue", "lung", "heart", "bone")
FIELD_MM = 410.0
# As a plan would fix them for CT: values below -900 HU are air to the network.
WINDOW, MEAN, STD = (-900.0, 500.0), -300.0, 400.0
AIR = (WINDOW[0] - MEAN) / STD
PEER = "monai torch fp32"
ENGINES = {
    PEER: {},
    "torch fp32": {"name": "torch", "precision": "fp32"},
    "openvino fp32": {"name": "openvino", "precision": "fp32"},
    "openvino fp32, skipping": {"name": "openvino", "precision": "fp32", "skip": True},
    "openvino bf16": {"name": "openvino", "precision": "bf16"},
    "openvino bf16, skipping": {"name": "openvino", "precision": "bf16", "skip": True},
    "openvino bf16, skipping, float16 sums": {"name": "openvino", "precision": "bf16", "skip": True, "half": True},
    "openvino bf16, skipping, slack 0.4": {"name": "openvino", "precision": "bf16", "skip": True, "slack": 0.4},
    "openvino bf16, skipping, overlap 0.25": {"name": "openvino", "precision": "bf16", "skip": True, "overlap": 0.25},
}


def network() -> torch.nn.Module:
    from monai.networks.nets import DynUNet

    torch.manual_seed(0)
    return DynUNet(
        3, 1, len(NAMES), [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[16, 32, 64, 128], norm_name="batch"
    )  # fmt: skip


def phantom(seed: int, sides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised pixels ``(Z, Y, X)`` float32 and label map uint8 of a chest in a field of 41 cm."""
    from vesalius.phantoms.ct import make_ct
    from vesalius.transforms.resample import resize

    factor = 4 if max(sides) > 256 else 2 if max(sides) > 96 else 1
    coarse = tuple(-(-side // factor) for side in sides)
    spacing = tuple(FIELD_MM / side for side in coarse)
    made = make_ct(seed=seed, index=0, shape=coarse, spacing_mm=spacing, noise_hu=0)
    pixels = resize(torch.from_numpy(made.case.images["image"].pixels[None].astype(np.float32)), sides)[0, 0].numpy()
    mask = made.mask
    for axis, side in enumerate(sides):
        mask = np.take(mask, np.minimum(np.arange(side) * coarse[axis] // side, coarse[axis] - 1), axis=axis)
    draw = np.random.default_rng(seed)
    for z in range(len(pixels)):
        pixels[z] += draw.standard_normal(pixels.shape[1:], dtype=np.float32) * np.float32(20)
    pixels = np.clip(pixels, *WINDOW, out=pixels)
    pixels -= MEAN
    pixels /= STD
    # Nodules count as soft tissue: the network has five outputs.
    return pixels, np.where(mask >= len(NAMES), 1, mask).astype(np.uint8)


def train(work: Path, volumes: list[tuple[int, ...]], patch: int, steps: int) -> Path:
    """Weights after `steps` small batches from phantoms with the voxels of the volumes; kept on disk."""
    path = work / f"weights-{'+'.join('x'.join(map(str, sides)) for sides in volumes)}-{patch}-{steps}.pt"
    if path.is_file():
        return path
    net = network().train()
    draw = np.random.default_rng(0)
    cases = [phantom(100 + k, sides) for sides in volumes for k in range(2 if max(sides) <= 256 else 1)]
    inside = [[np.argwhere(mask[::3, ::3, ::3] == label) * 3 for label in range(1, len(NAMES))] for _, mask in cases]
    # Without weights so short a training never finds the small structures (docs/segmentation.md).
    share = sum(np.bincount(mask.ravel(), minlength=len(NAMES)) / mask.size for _, mask in cases)
    weights = torch.tensor(np.clip(np.sqrt(share.max() / np.maximum(share, 1e-9)), 1, 12), dtype=torch.float32)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        xs, ys = [], []
        for _ in range(2):
            number = int(draw.integers(len(cases)))
            pixels, mask = cases[number]
            low = [draw.integers(0, max(1, side - patch + 1)) for side in mask.shape]
            if draw.random() < 0.5:  # around a voxel of a structure, each as often
                found = inside[number][draw.integers(len(NAMES) - 1)]
                place = found[draw.integers(len(found))] - patch // 2
                low = [int(np.clip(a, 0, side - patch)) for a, side in zip(place, mask.shape, strict=True)]
            cut = tuple(slice(a, a + patch) for a in low)
            xs.append(pixels[cut][None])
            ys.append(mask[cut])
        x, y = torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(ys)).long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(x).float()
        p = logits.softmax(1)
        one = torch.nn.functional.one_hot(y, len(NAMES)).movedim(-1, 1)
        dice = (2 * (p * one).sum((0, 2, 3, 4)) + 1) / ((p + one).sum((0, 2, 3, 4)) + 1)
        loss = torch.nn.functional.cross_entropy(logits, y, weights) + 1 - dice.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"  training step {step}: loss {loss.item():.3f}", flush=True)
    torch.save(net.state_dict(), path)
    return path


def memory_mb(key: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the peak) of this process; unlike ru_maxrss it knows nothing of the parent."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {key}")


def child(engine: str, volume: Path, weights: Path, patch: int, out: Path) -> None:
    """Run one engine and write its mask; numbers go to the standard output."""
    import monai.inferers  # both sides start from the same imports

    from vesalius.core.environment import available_cores

    torch.set_num_threads(available_cores())
    net = network().eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    pixels = np.load(volume)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    sides = (patch,) * 3
    options = dict(ENGINES[engine])
    if not options:
        ready = time.perf_counter()
        with torch.inference_mode():
            found = monai.inferers.sliding_window_inference(
                torch.from_numpy(pixels)[None, None], sides, 2, net, overlap=0.5, mode="gaussian"
            )
            mask = found[0].argmax(0).to(torch.uint8).numpy()
        tiles, skipped = 0, 0
    else:
        from vesalius.predict.backends import make_backend
        from vesalius.predict.restore import Placement, Restorer, restore
        from vesalius.predict.tiles import SkipRule, TileCount, TileSettings, predict_slabs

        backend = make_backend(
            [net], inputs=1, patch=sides, batch=2, name=options.pop("name"), precision=options.pop("precision")
        )
        rule = SkipRule(value=AIR, tolerance=1e-3) if options.pop("skip", False) else None
        warm = Restorer(Placement.plain((1, 2, 2)), len(NAMES))
        warm.add(0, 1, np.zeros((len(NAMES), 1, 2, 2), np.float32))  # loads the compiled kernel
        ready = time.perf_counter()
        count = TileCount()
        chosen = TileSettings(sides, skip=rule, **options)
        slabs = predict_slabs(pixels[None], pixels.shape, backend, chosen, len(NAMES), count=count)
        mask = restore(slabs, Placement.plain(pixels.shape), len(NAMES))
        tiles, skipped = count.tiles, count.skipped
    end = time.perf_counter()
    peak = memory_mb("VmHWM") - before
    np.save(out, mask)
    print(json.dumps({"seconds": end - ready, "ready_s": ready - start, "peak_mb": peak,
                      "tiles": tiles, "skipped": skipped}))  # fmt: skip


def dice(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Per structure, and the mean of the structures."""
    counts = np.bincount(a.ravel().astype(np.int64) * len(NAMES) + b.ravel(), minlength=len(NAMES) ** 2)
    table = counts.reshape(len(NAMES), len(NAMES)).astype(float)
    each = [2 * table[k, k] / max(1.0, table[k].sum() + table[:, k].sum()) for k in range(1, len(NAMES))]
    return [*each, float(np.mean(each))]


def compare(sides: tuple[int, ...], asked: argparse.Namespace, weights: Path) -> dict:
    label = "x".join(map(str, sides))
    volume, truth = asked.work / f"volume-{label}.npy", asked.work / f"truth-{label}.npy"
    if not truth.is_file():
        pixels, mask = phantom(7, sides)
        np.save(volume, pixels)
        np.save(truth, mask)
        del pixels, mask
    rows, masks = {}, {}
    for engine in ENGINES:
        if asked.engines and engine not in [*asked.engines, PEER]:
            continue
        out = asked.work / f"mask-{label}.npy"
        command = [sys.executable, __file__, "--child", engine, str(volume), str(weights), str(asked.patch), str(out)]
        runs = []
        for _ in range(asked.repeats):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{engine} failed: {done.stderr[-2000:]}")
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
        row = min(runs, key=lambda one: one["seconds"])
        masks[engine] = np.load(out)
        row["dice"] = dice(np.load(truth), masks[engine])
        row["change"] = [a - b for a, b in zip(row["dice"], (rows.get(PEER) or row)["dice"], strict=True)]
        row["agreement"] = dice(masks[PEER], masks[engine])
        row["ratio"] = (rows.get(PEER) or row)["seconds"] / row["seconds"]
        rows[engine] = row
        print(
            f"  {engine:42s} {row['seconds']:8.1f} s  x{row['ratio']:5.2f}  {row['peak_mb']:7.0f} MB more  "
            f"tiles {row['tiles'] - row['skipped']}/{row['tiles']}  Dice {row['dice'][-1]:.4f}, change "
            f"{max(row['change'], key=abs):+.5f} at most, {row['change'][-1]:+.5f} mean, "
            f"agreement {min(row['agreement']):.5f}",
            flush=True,
        )
    return {"sides": list(sides), "patch": asked.patch, "structures": [*NAMES[1:], "mean"], "engines": rows}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        engine, volume, weights, patch, out = sys.argv[2:]
        child(engine, Path(volume), Path(weights), int(patch), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=["256,256,256", "400,512,512"], help="z,y,x of each volume")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--train-patch", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs counts")
    parser.add_argument("--engines", nargs="*", help="only these engines, and the peer")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-sliding-window"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    volumes = [tuple(int(side) for side in text.split(",")) for text in asked.sides]
    weights = train(asked.work, volumes, asked.train_patch, asked.steps)
    results = []
    for sides in volumes:
        print("x".join(map(str, sides)), flush=True)
        results.append(compare(sides, asked, weights))
    if asked.json is not None:
        machine = {"processor": platform.processor(), "cores": torch.get_num_threads(), "torch": torch.__version__}
        asked.json.write_text(json.dumps({"machine": machine, "volumes": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
