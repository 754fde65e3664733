"""Serving: the service against a bare loop of the same model, and against `mlflow models serve`.

Models are registered as they are before any training, since weights do not matter here: a DCGAN and a lenet of their
default sizes, whose images cost less than a request does, and a DCGAN of 64x64 in colour and a MobileNetV2 of 96x96.
The picture to classify is one of Fashion-MNIST's, enlarged. `wrk` asks the service on loopback, `--images` seeds or one
picture a request, on connections that stay open, at 1, 8 and 32 clients. The bare loop calls the same compiled function
in as many threads as the service has, at the number of rows that the service had on average (the next exact one). It
has no HTTP, JSON, PNG or queue, nor a client on the same cores. MLflow's server has the same model by `gan-spark
export`, and the same requests of 32 clients in its own form.

    python benchmarks/serve.py

It needs `wrk` (Debian's and Ubuntu's package of that name) and gan-spark[serve,mlflow].
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator

import common
import numpy as np

CLIENTS = (1, 8, 32)
MODELS = {
    "dcgan": {"name": "dcgan"},
    "lenet": {"name": "lenet"},
    "dcgan-64": {"name": "dcgan", "image_size": 64, "channels": 3},
    "mobilenet": {"name": "classifier", "network": "MobileNetV2", "weights": "", "image_size": 96},
}
CALLS = {"dcgan": "generate", "lenet": "classify", "dcgan-64": "generate", "mobilenet": "classify"}
SIDES = {"lenet": (28, 1), "mobilenet": (96, 3)}  # pixels a side and channels of the picture


def main() -> None:
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--seconds", type=float, default=10, help="that each side runs for (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="seeds of a request (default: %(default)s)")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="(default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that compute (default: one a core)")
    arguments = common.arguments(parser)
    if shutil.which("wrk") is None:
        sys.exit("error: no wrk on the path; Debian and Ubuntu have it as the package wrk")
    from gan_spark import process
    from gan_spark.serving import server

    process.prepare()
    server.set_threads(arguments.threads)
    figures = {}
    with common.lake(arguments) as lake:
        register(lake)
        for model in arguments.models:
            served = service(lake, model, arguments)
            for clients, side in served.items():
                side["bare_images_per_second"] = bare(lake, model, side["rows_at_once"], arguments)
                side["ratio"] = round(side["images_per_second"] / side["bare_images_per_second"], 3)
                common.say(f"{model} at {clients} clients: {side}")
            most = served[CLIENTS[-1]]
            most["mlflow"] = mlflow(lake, model, arguments)
            most["times_mlflow"] = round(most["images_per_second"] / most["mlflow"]["images_per_second"], 2)
            common.say(f"{model}: {most['times_mlflow']} times mlflow models serve, {most['mlflow']}")
            figures[model] = served
    at_most = [served[CLIENTS[-1]] for served in figures.values()]
    common.finish(
        {
            "benchmark": "serve",
            "ratio": min(side["ratio"] for side in at_most),
            "bound": 0.8,
            "times_mlflow": min(side["times_mlflow"] for side in at_most),
            "bound_mlflow": 2.0,
            "threads": arguments.threads,
            "images_a_request": {"generate": arguments.images, "classify": 1},
            "seconds": arguments.seconds,
            "figures": figures,
        }
    )


def register(lake: str) -> None:
    """Registers a run of each model in the lake, of weights as they are at the start, unless it has them."""
    import tensorflow as tf

    from gan_spark.config import resolved
    from gan_spark.runs import loading, registry
    from gan_spark.runs.store import Run

    for name in set(MODELS) - set(registry.models(lake)):
        config = loading.model_config(MODELS[name])
        model, run = loading.build(config), Run.named(lake, name)
        dataset = {"url": f"{lake}/datasets/none", "fingerprint": "", "classes": [str(one) for one in range(10)]}
        record = {
            "config": {"run": name, "model": resolved(config), "uses": {}},
            "dataset": dataset,
            "created": "today",
        }
        run.start({**record, "versions": {}})
        run.save_checkpoint(1, lambda prefix, model=model: tf.train.Checkpoint(model=model).write(prefix), keep=1)
        registry.promote(lake, name, name)


def service(lake: str, model: str, arguments) -> dict[int, dict]:
    """Figures of the service by the number of clients."""
    words = ["gan_spark", "serve", "--lake", lake, "--model", model, "--threads", str(arguments.threads)]
    with server([*words, "--port"], "/v2/health/ready") as port:
        path, body = request(model, arguments)
        load(port, path, body, 8, 3)  # warms up
        return {clients: measured(port, path, body, model, clients, arguments) for clients in CLIENTS}


def mlflow(lake: str, model: str, arguments) -> dict:
    """Figures of `mlflow models serve` at most clients, of the same model by its export."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "gan_spark", "export", model, "--lake", lake, "--to", f"{folder}/export"]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        words = ["mlflow", "models", "serve", "-m", f"{folder}/export/mlflow", "--env-manager", "local", "--port"]
        with server(words, "/ping") as port:
            _, body = request(model, arguments)
            if CALLS[model] == "generate":
                split = {"columns": ["seed"], "data": [["%d"]] * arguments.images}
            else:
                split = {"columns": ["image"], "data": [[json.loads(body)["data"]]]}
            body = json.dumps({"dataframe_split": split}).replace('"%d"', "%d")
            call_once(port, "/invocations", body.replace("%d", "1"))  # MLflow loads the model at its first request.
            load(port, "/invocations", body, 8, 3)
            rate, latency = load(port, "/invocations", body, CLIENTS[-1], arguments.seconds)
    return {"images_per_second": round(rate * images_of(model, arguments), 1), "milliseconds": latency}


def call_once(port: int, path: str, body: str) -> None:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(asked, timeout=120).read()


def images_of(model: str, arguments) -> int:
    """Images a request."""
    return arguments.images if CALLS[model] == "generate" else 1


@contextlib.contextmanager
def server(words: list[str], ready: str) -> Iterator[int]:
    """The port of `python -m` with these words and a port, once it answers at the path `ready`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # In a file: what nobody reads from a pipe would fill it. In a session of its own: it may have workers.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words, str(port)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait(port, ready, process)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def wait(port: int, ready: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("error: the service ended")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("error: the service did not answer")


def request(model: str, arguments) -> tuple[str, str]:
    """Path and body, in which %d is another number each time."""
    if CALLS[model] == "generate":
        return "/generate", f'{{"first_seed": %d, "images": {arguments.images}}}'
    from gan_spark.data import images

    pixels, _ = common.read_idx(arguments.data, "t10k")
    side, channels = SIDES[model]
    picture = images.resize(np.repeat(pixels[0].reshape(28, 28, 1), channels, axis=2), side, side, "crop")
    return "/", json.dumps({"data": base64.b64encode(images.encode_png(picture)).decode()})


def load(port: int, path: str, body: str, clients: int, seconds: float) -> tuple[float, dict[str, float]]:
    """(Requests a second, milliseconds by share) of wrk; every answer has to be 200."""
    script = f"""
local number = {int(time.time())}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  return wrk.format(nil, nil, nil, (string.gsub([=[{body}]=], "%%d", function()
    number = number + 1
    return tostring(number)
  end)))
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("GAN %d %d %d %f %f\\n", summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{seconds:g}s", "--timeout", "30s", "-s", file.name]
        output = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
        )
    numbers = [float(one) for one in re.search(r"GAN (.*)", output.stdout)[1].split()]
    if numbers[2] or not numbers[0]:
        sys.exit(f"error: {numbers[2]:.0f} requests failed, {numbers[0]:.0f} were answered\n{output.stdout}")
    return numbers[0] / numbers[1] * 1e6, {"p50": round(numbers[3], 2), "p99": round(numbers[4], 2)}


def rows(port: int, call: str) -> tuple[float, float]:
    """(Batches, rows) that the service has computed."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    pattern = r'gan_spark_batch_rows_{}\{{call="{}"\}} (\S+)'
    return tuple(float(re.search(pattern.format(what, call), text)[1]) for what in ("count", "sum"))


def measured(port: int, path: str, body: str, model: str, clients: int, arguments) -> dict:
    before = rows(port, CALLS[model])
    rate, latency = load(port, path, body, clients, arguments.seconds)
    batches, count = (after - former for after, former in zip(rows(port, CALLS[model]), before, strict=True))
    return {
        "images_per_second": round(rate * images_of(model, arguments), 1),
        "milliseconds": latency,
        "rows_at_once": round(count / batches, 2),
    }


def bare(lake: str, model: str, rows_at_once: float, arguments) -> float:
    """Images a second of the compiled function alone, in as many threads."""
    import tensorflow as tf

    from gan_spark import process
    from gan_spark.runs import registry
    from gan_spark.runs.store import Run
    from gan_spark.serving import functions

    def load():
        entry = registry.current(lake, model)
        answers = functions.answers(Run.named(lake, entry["run"]), entry["step"])
        return answers, functions.exact(answers)

    answers, exact = process.cached(("bare", model), load)
    call = CALLS[model]
    size = min((size for size in exact[call] if size >= rows_at_once), default=max(exact[call]))
    columns = {key: tf.identity(value) for key, value in answers.noise(size, answers.calls()[call].columns).items()}
    counts, end = [0] * arguments.threads, time.monotonic() + arguments.seconds

    def work(place: int) -> None:
        while time.monotonic() < end:
            exact[call][size](columns).numpy()
            counts[place] += size

    threads = [threading.Thread(target=work, args=(place,)) for place in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(counts) / arguments.seconds, 1)


if __name__ == "__main__":
    main()
