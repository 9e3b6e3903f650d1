"""Videos of `meanshifter predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli.options import echo, load_predictor, say
from meanshifter.errors import InputError, counted

if TYPE_CHECKING:
    from meanshifter.inference.predictor import Predictor
    from meanshifter.jobs.clips import ClipJob
    from meanshifter.jobs.video import LabeledVideo

IMAGES_ONLY = {
    "confidence": "confidence maps are only written for images; write the frames as images to get them",
    "probabilities": "probabilities are only written for images; write the frames as images to get them",
    "sheet": "only applies to images",
    "root": "only applies to datasets by name",
    "split": "only applies to datasets by name",
    "submission": "only applies to datasets by name",
    "resume": "does not apply to videos, which have no manifest; results are replaced once they are complete",
    "overwrite": "does not apply to videos, which have no manifest; results are replaced once they are complete",
    "backend": "does not apply to videos; start one command for each",
    "address": "does not apply to videos; start one command for each",
    "workers": "does not apply to videos; start one command for each",
    "cpus_per_worker": "does not apply to videos; start one command for each",
    "devices": "does not apply to videos; start one command for each, with --device",
    "num_nodes": "does not apply to videos; start one command for each, with --device",
}
"""Options that conflict with videos, and why."""


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only apply to videos."""
    group = parser.add_argument_group(
        "videos",
        "A video or an animated GIF (NAME.mp4), a folder of frames with --as-video, or the number of a camera, which "
        "is read until Ctrl-C. DIR/NAME/ gets labels.mp4 (class colors), overlay.mp4, areas.csv (the share of each "
        "class in each frame) and, if matplotlib is installed, areas.png. After Ctrl-C, they hold the finished "
        "frames. Needs the extra video.",
    )
    add = group.add_argument
    add("--as-video", type=float, metavar="FPS", help="read each folder as the frames of a video, in order of names")
    add("--frames", action="store_true", help="also write the label map of each frame to DIR/NAME/frames/")


def clips_of(args: argparse.Namespace) -> list[ClipJob]:
    """The videos among the inputs; empty if they are images.

    Raises:
        InputError: videos and images together, or options that apply to the other kind.
    """
    from meanshifter.jobs.clips import plan_clips

    if args.root is not None and args.as_video is None:  # the input is the name of a dataset
        clips = []
    else:
        clips = plan_clips(args.inputs, Path(args.out), frames=args.as_video is not None)
    if not clips:
        if args.frames:
            raise InputError(
                f"--frames: only applies to videos, and {args.inputs[0]} is none; add --as-video FPS for a "
                "folder of frames"
            )
        return []
    for name, why in IMAGES_ONLY.items():
        value = getattr(args, name)
        if not (value is None or value is False or value == []):
            raise InputError(f"--{name.replace('_', '-')}: {why}")
    if args.mean_shift_layers is not None and len(set(args.mean_shift_layers)) > 1:
        steps = " ".join(map(str, args.mean_shift_layers))
        raise InputError(f"--mean-shift-layers: {steps}; a video is labeled with one number of steps, give one")
    return clips


def run(args: argparse.Namespace, clips: list[ClipJob], asked: dict[str, Any]) -> int:
    """Label the videos; status 2 if one, or a part of one, could not be read."""
    from meanshifter.data.video import require_av

    require_av()
    failed = _unreadable(args, clips)
    if len(failed) == len(clips):
        for reason in failed.values():
            say(reason)
        return 2
    steps = args.mean_shift_layers[0] if args.mean_shift_layers else None
    predictor = load_predictor(args.model, args, steps, others=args.ensemble, labeling=True, **asked)
    lost = False
    for clip in clips:
        if clip.out not in failed:
            try:
                lost |= _label(args, clip, predictor)
            except InputError as error:
                failed[clip.out] = str(error)
    for reason in failed.values():
        say(reason)
    return 2 if failed or lost else 0


def _unreadable(args: argparse.Namespace, clips: list[ClipJob]) -> dict[Path, str]:
    """Why videos cannot be labeled, by their folder: found before the model is loaded. Cameras are not tried."""
    from meanshifter.data.reading import MAX_PIXELS
    from meanshifter.data.video import open_clip
    from meanshifter.jobs.video import Outputs, result_names

    failed = {}
    for clip in clips:
        try:
            Outputs(clip.out, result_names(frames=args.frames)).check(clip.source)
            if not isinstance(clip.source, int):
                limit = MAX_PIXELS if args.max_pixels is None else args.max_pixels
                with open_clip(clip.source, fps=args.as_video, max_pixels=limit):
                    pass
        except InputError as error:
            failed[clip.out] = str(error)
    return failed


def _label(args: argparse.Namespace, clip: ClipJob, predictor: Predictor) -> bool:
    """Label one video and say what was written; returns whether frames of it were lost."""
    from meanshifter.jobs.video import label_video

    done = label_video(
        predictor, clip.source, clip.out, fps=args.as_video, alpha=args.alpha, frames=args.frames, progress=True
    )
    files = [*done.files, *_plot(done, predictor)]
    rate = done.frames / max(done.seconds, 1e-9)
    frames = counted(done.frames, "frame")
    echo(f"{clip.source}: {frames} labeled in {done.folder}, {rate:.1f} per second: {', '.join(files)}")
    for loss in done.losses:
        say(f"{clip.source}: {loss}")
    return bool(done.losses)


def _plot(done: LabeledVideo, predictor: Predictor) -> list[str]:
    from meanshifter.analysis.areas import plot_areas
    from meanshifter.analysis.figures import NO_MATPLOTLIB, has_matplotlib
    from meanshifter.jobs.video import AREAS

    if not has_matplotlib():
        say(f"no plot of the areas: {NO_MATPLOTLIB}")
        return []
    name = Path(AREAS).with_suffix(".png").name
    plot_areas(done.folder / AREAS, done.folder / name, predictor.model.label_space)
    return [name]
