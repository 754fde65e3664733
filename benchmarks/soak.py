"""Two days in an hour: everything at once on one lake, for --minutes, and what has to hold all the while.

At once, each job a process of its own, on images of 28x28 (Fashion-MNIST's test images):

- images arrive in a folder of class folders, one in fifty of them damaged, and are appended; every fourth append is
  killed midway, and the next one has to end whole;
- runs of a small DCGAN are trained on two Horovod ranks, each from the weights of the last one, and killed every few
  minutes until they end, by the same command again;
- a run that has ended generates, is evaluated, and is promoted if it is better;
- the promoted version is served, and asked twice a second: an answer is the same image for the same version and seed.

Every 20 seconds it is looked, without Spark, whether each snapshot has the rows that it states, each id once, and all
of the former one; whether each image that was generated leads to its run, checkpoint and snapshot; and whether what is
promoted is there. At the end no folder of a job that ended by itself is left. `ratio` is the service's memory in the
last sixth of its time over that in the second sixth; `violations` has all that did not hold, and is to be empty.

    python benchmarks/soak.py --minutes 60
"""

import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import common
import psutil

BOUND = 1.25
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "soak"  # of dataset and model
CONFIG = """
run = "first"
dataset = "soak"
lake = "{lake}"
[ingest]
source = "folder"
path = "{arriving}"
mode = "append"
height = 28
width = 28
channels = 1
validation = 0.1
test = 0.1
planned_workers = 2
[model]
name = "dcgan"
width = 8
latent = 16
[train]
steps = 600
batch_size = 32
workers = 2
launcher = "spark"
log_every = 100
checkpoint_every = 100
sample_every = 600
[generate]
images = 200
[evaluate]
classifier_steps = 100
[promote]
model = "soak"
only_if_better = true
"""


class Soak:
    """What all actors share: the lake, the time, what was done, and what did not hold."""

    def __init__(self, folder: str, minutes: float):
        self.lake, self.arriving = os.path.join(folder, "lake"), os.path.join(folder, "arriving")
        self.config, self.logs = os.path.join(folder, "soak.toml"), os.path.join(folder, "logs")
        os.makedirs(self.logs, exist_ok=True)
        with open(self.config, "w") as file:
            file.write(CONFIG.format(lake=self.lake, arriving=self.arriving))
        self.end = time.monotonic() + 60 * minutes
        self.done, self.violations = collections.Counter(), []
        self.ended = []  # runs

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def wrong(self, text: str) -> None:
        self.violations.append(text)
        common.say(f"VIOLATION: {text}")

    def job(self, name: str, *overrides: str, kill_after: float | None = None) -> dict | None:
        """The answer of jobs/<name>.py; None where it was killed, or failed, which is a violation."""
        self.done[name] += 1
        log = os.path.join(self.logs, f"{name}-{self.done[name]}")
        options = [f"--set={override}" for override in overrides]
        with open(log, "w") as errors:
            job = subprocess.Popen(
                [sys.executable, os.path.join(ROOT, "jobs", f"{name}.py"), "--config", self.config, *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        try:
            output, _ = job.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            processes = [job.pid, *(child.pid for child in psutil.Process(job.pid).children(recursive=True))]
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            job.communicate()
            self.done[f"{name} killed"] += 1
            return None
        if job.returncode:
            with open(log) as errors:
                self.wrong(f"{name} {' '.join(overrides)} ended with {job.returncode}: {errors.read()[-500:]}")
            return None
        return json.loads(output.splitlines()[-1])


# --- what happens ----------------------------------------------------------------------


def append(soak: Soak, data: str) -> None:
    """Images arrive, 200 at a time, and are appended; what a killed append was to add is the next one's."""
    import cv2

    images, labels = common.read_idx(data, "t10k")
    there, bad, turn = 0, 0, 0
    while not soak.is_over() and there < len(images):
        for number in range(there, min(there + 200, len(images))):
            place = os.path.join(soak.arriving, str(labels[number]))
            os.makedirs(place, exist_ok=True)
            png = cv2.imencode(".png", images[number])[1].tobytes()
            is_bad = number % 50 == 49
            with open(os.path.join(place, f"{number:05d}.png"), "wb") as file:
                file.write(png[: len(png) // 2] if is_bad else png)
            there, bad = there + 1, bad + is_bad
        turn += 1
        kill_after = random.Random(turn).uniform(4, 14) if turn % 4 == 0 else None
        answer = soak.job("ingest", kill_after=kill_after)
        if answer and (answer["rows"], answer["rejected"]) != (there - bad, bad):
            soak.wrong(f"append {turn}: {there} files, {bad} of them bad, and {answer}")
    soak.done["images"] = there


def train(soak: Soak) -> None:
    """Runs, one after the other; each killed now and then."""
    number, former, draws = 0, "", random.Random(0)
    while not soak.is_over():
        number += 1
        run = f"run-{number}"
        more = [f"train.start_from={former}"] if former else []
        while not soak.is_over():
            kill_after = draws.uniform(30, 150) if draws.random() < 0.5 else None
            answer = soak.job("train", f"run={run}", *more, kill_after=kill_after)
            if answer:
                if answer["steps"] != 600:
                    soak.wrong(f"{run} ended at step {answer['steps']}")
                soak.ended.append(run)
                former = run
                break
            if kill_after is None:
                return  # What failed by itself is told.


def measure(soak: Soak) -> None:
    """What has ended generates, is evaluated and promoted."""
    measured = 0
    while not soak.is_over():
        if measured == len(soak.ended):
            time.sleep(1)
            continue
        run = f"run={soak.ended[measured]}"
        measured += 1
        if soak.job("generate", run) and soak.job("evaluate", run) and (answer := soak.job("promote", run)):
            soak.done["promotions"] += bool(answer["promoted"])


def serve(soak: Soak, sizes: list[tuple[float, int, int]]) -> None:
    """A service from the first promotion on, and its one client; (seconds, memory, open files) go to `sizes`."""
    while not soak.done["promotions"]:
        if soak.is_over():
            return
        time.sleep(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gan_spark", "serve", "--lake", soak.lake, "--model", NAME, f"--port={port}"]
    with open(os.path.join(soak.logs, "serve"), "w") as log:
        service = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(service, port)
        ask(soak, service, port, sizes)
    finally:
        service.send_signal(signal.SIGTERM)
        if service.wait(60) not in (0, -signal.SIGTERM):
            soak.wrong(f"the service ended with {service.returncode}")


def wait_until_ready(service, port: int) -> None:
    while service.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the service ended with {service.returncode}")


def ask(soak: Soak, service, port: int, sizes: list) -> None:
    process, draws, drawn = psutil.Process(service.pid), random.Random(1), {}
    while not soak.is_over():
        seed = draws.randrange(50)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate", json.dumps({"seeds": [seed]}).encode(), {"Accept": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                told = json.loads(answer.read())
            (image,) = told["images"]
            if drawn.setdefault((told["version"], seed), image["png"]) != image["png"]:
                soak.wrong(f"version {told['version']}, seed {seed}: another image than before")
            soak.done["answers"] += 1
        except urllib.error.HTTPError as error:
            if error.code == 503 and "Retry-After" in error.headers:
                soak.done["refused for a while"] += 1
            else:
                soak.wrong(f"the service answered {error.code}: {error.read()[:200]!r}")
        sizes.append((time.monotonic(), process.memory_info().rss, process.num_fds()))
        time.sleep(0.5)
    soak.done["versions that answered"] = len({version for version, _ in drawn})


# --- what has to hold ------------------------------------------------------------------


class Watch:
    """Looks at the lake as a reader that knows nothing of the jobs."""

    def __init__(self, soak: Soak):
        self.soak, self.seen, self.ids = soak, 0, set()

    def run(self) -> None:
        while not self.soak.is_over():
            time.sleep(20)
            self.look()

    def look(self) -> None:
        for look in (self.snapshots, self.images, self.promoted):
            try:
                look()
            except Exception as error:
                self.soak.wrong(f"{look.__name__}: {type(error).__name__}: {error}")
        self.soak.done["looks"] += 1

    def snapshots(self) -> None:
        import pyarrow.parquet as pq

        from gan_spark import lake
        from gan_spark.data import schema, snapshots

        url = lake.dataset_place(self.soak.lake, NAME)
        if not lake.exists(lake.join(url, schema.MANIFEST)):
            return
        for manifest in sorted(schema.snapshots(url), key=lambda manifest: manifest.number):
            if manifest.number <= self.seen:
                continue
            places = snapshots.files(lake.at_snapshot(url, manifest.number)).values()
            ids = [id for place in places for id in pq.read_table(place[7:], columns=["id"]).column("id").to_pylist()]
            if len(ids) != sum(manifest.rows.values()) or len(set(ids)) != len(ids) or not self.ids <= set(ids):
                self.soak.wrong(f"snapshot {manifest.number}: {len(ids)} ids, {len(set(ids))} different, {manifest}")
            self.seen, self.ids = manifest.number, set(ids)

    def images(self) -> None:
        import pyarrow.parquet as pq

        from gan_spark import lake
        from gan_spark.runs import catalogue
        from gan_spark.runs.store import Run

        for name in list(self.soak.ended):
            table = os.path.join(self.soak.lake, "generated", name)
            if not os.path.isdir(table):
                continue
            rows = pq.read_table(table, columns=["run", "step", "seed"]).to_pylist()
            if len({row["seed"] for row in rows}) != len(rows):
                self.soak.wrong(f"{table}: a seed twice")
            url = lake.dataset_place(self.soak.lake, NAME)
            for run, step in {(row["run"], row["step"]) for row in rows}:
                lineage = catalogue.lineage(self.soak.lake, run.rsplit("/", 1)[-1])
                numbers = {row["snapshot"] for row in catalogue.snapshots_of(self.soak.lake, NAME)}
                leads = step in Run(lineage["url"]).checkpoints() and lineage["snapshot"] in numbers
                if not leads or lake.canonical(lineage["dataset"]) != lake.canonical(url):
                    self.soak.wrong(f"{table}: {run} at step {step} leads to {lineage['dataset']}")
            self.soak.done["tables looked at"] += 1

    def promoted(self) -> None:
        from gan_spark.runs import registry
        from gan_spark.runs.store import Run

        if self.soak.done["promotions"]:
            version = registry.current(self.soak.lake, NAME)
            if version["step"] not in Run.named(self.soak.lake, version["run"]).checkpoints():
                self.soak.wrong(f"{version['run']} is promoted at step {version['step']}, which is not there")

    def strays(self) -> list[str]:
        """Folders that jobs had staged."""
        found = []
        for folder in ("datasets", "generated", "runs", "models"):
            path = os.path.join(self.soak.lake, folder)
            names = os.listdir(path) if os.path.isdir(path) else ()
            found += [f"{folder}/{name}" for name in names if re.fullmatch(r"\..+\.[0-9a-f]{8}", name)]
        return found


# --- all of it -------------------------------------------------------------------------


def started(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, name=function.__name__)
    thread.start()
    return thread


def result(soak: Soak, sizes: list[tuple[float, int, int]], strays: list[str], minutes: float) -> dict:
    begin, span = (sizes[0][0], sizes[-1][0] - sizes[0][0]) if sizes else (0, 0)

    def medians(column: int) -> list[float]:
        parts = ((1 / 6, 1 / 3), (5 / 6, 1))
        within = [[each[column] for each in sizes if a * span <= each[0] - begin <= b * span] for a, b in parts]
        return [statistics.median(values) if values else 0 for values in within]

    memory, files = medians(1), medians(2)
    if len(strays) > soak.done["ingest killed"]:
        soak.wrong(f"{len(strays)} staged folders are left, of {soak.done['ingest killed']} killed appends: {strays}")
    return {
        "benchmark": "soak",
        "ratio": round(memory[1] / memory[0], 3) if memory[0] else None,
        "bound": BOUND,
        "violations": soak.violations,
        "minutes": minutes,
        "done": dict(sorted(soak.done.items())),
        "runs": len(soak.ended),
        "service_mb": [round(value / 2**20, 1) for value in memory],
        "service_open_files": files,
        "staged_by_killed_jobs": strays,
    }


def main() -> None:
    parser = common.parser(__doc__, repeats=0)
    parser.add_argument("--minutes", type=float, default=60, help="(default: %(default)s)")
    arguments = common.arguments(parser)
    with common.lake(arguments) as folder:
        soak, sizes = Soak(folder, arguments.minutes), []
        watch = Watch(soak)
        appending = started(append, soak, arguments.data)
        while not watch.seen and not soak.is_over():
            time.sleep(2)
            watch.snapshots()
        threads = [started(train, soak), started(measure, soak), started(serve, soak, sizes), started(watch.run)]
        for thread in (appending, *threads):
            thread.join()
        soak.job("ingest")
        watch.look()
        outcome = result(soak, sizes, watch.strays(), arguments.minutes)
    common.finish(outcome)
    sys.exit(bool(soak.violations))


if __name__ == "__main__":
    main()
