"""Latency of the explorer: what a click on a patch takes once the tokens are there, and a step of the slider.

    python benchmarks/explorer.py [--classes 150] [--size 512] [--model FOLDER]

Requests are those of the page, to a server in the same process, on the loopback address; where Chromium and selenium
are installed, also from the click to the picture in the page. Prints medians and the slowest of `--repeats`.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import meanshifter as ms
from meanshifter.app.explorer import Explorer
from meanshifter.app.server import bind, server
from meanshifter.utils import environment as machine

CLICK = """
const [x, y, done] = arguments, canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
const start = performance.now();
const wait = () => document.body.dataset.busy === "0" ? requestAnimationFrame(() => done(performance.now() - start)) :
  requestAnimationFrame(wait);
canvas.dispatchEvent(new MouseEvent("click", {clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
wait();
"""
SLIDE = """
const [step, done] = arguments, slider = document.getElementById("step"), start = performance.now();
const wait = () => document.body.dataset.busy === "0" ? requestAnimationFrame(() => done(performance.now() - start)) :
  requestAnimationFrame(wait);
slider.value = step;
slider.dispatchEvent(new Event("input"));
wait();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: meanshifter-ti16 with random weights)")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    model = ms.create_model("meanshifter-ti16", args.classes) if args.model is None else ms.load_model(args.model)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (args.size // 16, args.size // 16, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        coarse.resize((args.size, args.size), Image.Resampling.BICUBIC).save(Path(folder) / "image.png")
        predictor = ms.Predictor(model, short_side=None, device=model.fastest_device)
        explorer = Explorer({"model": predictor}, folder)
        bound = bind("127.0.0.1", 0)
        running = server(explorer)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            print(machine.describe())
            print(f"{args.size}×{args.size} pixels, {model.label_space.num_classes} classes")
            port = bound.getsockname()[1]
            measure(port, args.repeats)
            measure_browser(port, args.repeats)
        finally:
            running.should_exit = True
            thread.join()
            explorer.close()
            bound.close()


def measure(port: int, repeats: int) -> None:
    """Requests one after the other."""
    connection, pair, rng = (
        http.client.HTTPConnection("127.0.0.1", port),
        "model=model&image=0",
        np.random.default_rng(0),
    )

    def ask(path: str, method: str = "GET") -> bytes:
        connection.request(method, f"/api/{path}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body

    once("encoding, and patch logits of all steps", lambda: ask(f"read?{pair}", "POST"))
    for path in ("labels", "confidence"):  # compiles the kernels
        ask(f"{path}?{pair}&step=8")
    once("tokens of all steps", lambda: ask(f"tokens?{pair}"))
    count = len(ask(f"modes?{pair}&step=0")) // 2
    clicks = [f"patch?{pair}&step={rng.integers(8)}&token={rng.integers(count)}" for _ in range(repeats)]
    several("click on a patch: similarity and row of S", ask, clicks)
    several("step of the slider: label map", ask, [f"labels?{pair}&step={step}" for step in range(8)])
    several("confidence of a step", ask, [f"confidence?{pair}&step={step}" for step in range(8)])
    several("modes of a step", ask, [f"modes?{pair}&step={step}" for step in range(1, 9)])
    connection.close()


def measure_browser(port: int, repeats: int) -> None:
    """From the event to the picture; label maps and modes are fetched ahead by the page."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        print("no chromium and chromedriver: not measured in the page")
        return
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    rng = np.random.default_rng(1)
    try:
        browser.get(f"http://127.0.0.1:{port}/")
        while browser.execute_script("return document.body.dataset.busy") != "0":
            time.sleep(0.05)
        time.sleep(3)  # what it fetches ahead
        clicks = [browser.execute_async_script(CLICK, *rng.random(2)) for _ in range(repeats)]
        steps = [browser.execute_async_script(SLIDE, step % 9) for step in range(repeats)]
    finally:
        browser.quit()
    show("in the page: click to picture", clicks)
    show("in the page: step to picture", steps)


def once(name: str, run: Callable[[], object]) -> None:
    start = time.perf_counter()
    run()
    print(f"{name:<50} {1000 * (time.perf_counter() - start):7.0f} ms")


def several(name: str, ask: Callable[[str], object], paths: list[str]) -> None:
    taken = []
    for path in paths:
        start = time.perf_counter()
        ask(path)
        taken.append(1000 * (time.perf_counter() - start))
    show(name, taken)


def show(name: str, taken: list[float]) -> None:
    print(f"{name:<50} {statistics.median(taken):7.0f} ms, slowest {max(taken):.0f} ms")


if __name__ == "__main__":
    main()
