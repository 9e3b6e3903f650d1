"""`meanshifter predict` of a 20-second clip of CamVid, against the model's own frames per second, in one process.

The model's own rate is that of `Predictor` on frames that are already decoded, without writing anything; its forward
passes alone are timed too. Both are measured before and after the command, on the same frames and threads, so that what
else the machine does has less influence on the ratio. The command is timed as a whole: opening the clip, loading the
model, labeling, both videos, the areas and their plot.

python benchmarks/video.py --root CamVid [--model MODEL] [--fps 25] [--seconds 20] [--own 40]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch

import meanshifter as ms
from meanshifter.cli.main import main as command
from meanshifter.cli.options import labeling_settings
from meanshifter.data.images import decode_image
from meanshifter.data.reading import rgb
from meanshifter.data.video import open_clip
from meanshifter.data.video_writer import VideoWriter
from meanshifter.export.export import windows_of
from meanshifter.utils import environment

SPLITS = ("val", "test", "train")


def make_clip(root: Path, path: Path, fps: Fraction, count: int) -> None:
    """The first frames of the splits, in order of names."""
    files = [file for split in SPLITS for file in sorted((root / split).iterdir())]
    if len(files) < count:
        raise SystemExit(f"{root}: {len(files)} frames; {count} are needed, use a lower --fps")
    first = rgb(decode_image(files[0]).upright, files[0])
    writer = VideoWriter(path, (first.shape[0], first.shape[1]), time_base=1 / fps, rate=fps)
    for number, file in enumerate(files[:count]):
        writer.write(rgb(decode_image(file).upright, file), number, 1)
    writer.close()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of all processors."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--model", help="default: an untrained meanshifter-ti16 with 11 classes")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--own", type=int, default=40, help="frames on which the model's own rate is measured, twice")
    args = parser.parse_args()
    count = args.fps * args.seconds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clip(args.root, folder / "clip.mp4", Fraction(args.fps), count)
        model = args.model
        if model is None:
            torch.manual_seed(0)
            model = str(folder / "model")
            ms.create_model("meanshifter-ti16", 11).save(model)
        measure(model, folder, count, args)


def measure(model: str, folder: Path, count: int, args: argparse.Namespace) -> None:
    loaded = ms.load_model(model)
    device = loaded.fastest_device
    options = argparse.Namespace()
    predictor = ms.Predictor(loaded, device=device, **labeling_settings(model, loaded, options))
    with open_clip(folder / "clip.mp4") as clip:
        frames = [frame.pixels for _, frame in zip(range(args.own), clip.frames, strict=False)]
    view = predictor.model.evaluation_view()

    def own() -> None:
        for pixels in frames:
            predictor(pixels)

    windows = [torch.cat(list(windows_of(predictor, pixels))) for pixels in frames]

    @torch.inference_mode()
    def passes() -> None:
        for images in windows:
            view.logits_at(images, [predictor.mean_shift_layers])

    def whole() -> None:
        words = ["predict", model, str(folder / "clip.mp4"), "--out", str(folder / "out")]
        with contextlib.redirect_stdout(io.StringIO()):
            if command(words) != 0:
                raise SystemExit("the command failed")

    predictor(frames[0])  # compiles kernels
    before, before_passes = timed(own), timed(passes)
    total = timed(whole)
    after_passes, after = timed(passes), timed(own)
    with open_clip(folder / "out" / "clip" / "labels.mp4") as written:
        assert sum(1 for _ in written.frames) == count
    H, W = frames[0].shape[:2]
    print(environment.describe() + f" · load {os.getloadavg()[0]:.1f}")
    print(
        f"{args.seconds} s at {args.fps} frames per second, {count} frames of {W}×{H}; "
        f"model's own rate on {len(frames)} frames before and after; {device}"
    )
    for clock, title in ((0, "wall clock"), (1, "processor time")):
        rate = count / total[clock]
        alone, forward = (
            2 * len(frames) / (one[clock] + other[clock])
            for one, other in ((before, after), (before_passes, after_passes))
        )
        print(
            f"{title}: the command {rate:.2f} frames per second, the predictor alone {alone:.2f} "
            f"({rate / alone:.0%}), forward passes alone {forward:.2f} ({rate / forward:.0%})"
        )


if __name__ == "__main__":
    main()
