"""Online learning: a classifier of eight classes of Fashion-MNIST, and then a stream with the other two.

A lenet learns eight classes and is promoted. Images of the other two arrive in lots, and after each one the promoted
version is trained on for --more steps, measured on the test split that grows with the dataset, and promoted if it is
better beyond chance: with all images alike, with a half of each batch new ones (`train.new_share = 0.5`), and with new
images alone, the baseline that forgets. A lenet that learns all ten classes from the start for as many steps in all is
what there was to reach. Accuracy is over the test images of the eight old classes and of the two new ones.

    python benchmarks/online.py
"""

import dataclasses
import os
import shutil

import common

SHARES = {"all_alike": 0.0, "half_new": 0.5, "new_alone": 1.0}
OLD, MODEL = 8, "clothing"


def arrive(data: str, folder: str, classes: range, each: int) -> None:
    """The first `each` images of each class as PNG files, the classes in turn."""
    import cv2
    import numpy as np

    images, labels = common.read_idx(data, "train")
    places = np.array([np.flatnonzero(labels == label)[:each] for label in classes])
    for index in places.T.ravel().tolist():
        path = os.path.join(folder, str(labels[index]), f"{index:05d}.png")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{folder}.part", "wb") as file:
            file.write(cv2.imencode(".png", images[index])[1].tobytes())
        os.rename(f"{folder}.part", path)


def accuracies(compared: dict, key: str) -> dict[str, float]:
    """Over the images of the old classes, and of the new ones."""
    sums = {}
    for name, row in compared["classes"].items():
        of = "old" if int(name) < OLD else "new"
        images, right = sums.get(of, (0, 0.0))
        sums[of] = images + row["images"], right + row["images"] * row[key]
    return {of: round(right / images, 4) for of, (images, right) in sums.items()}


def main() -> None:
    parser = common.parser(__doc__, repeats=0)
    parser.add_argument("--each", type=int, default=1000, help="images of a class (default: %(default)s)")
    parser.add_argument("--lot", type=int, default=500, help="images that arrive at once (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1500, help="steps on eight classes (default: %(default)s)")
    parser.add_argument("--more", type=int, default=300, help="steps after each lot (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (default: %(default)s)")
    arguments = common.arguments(parser)
    from gan_spark import job, online
    from gan_spark.data import stream
    from gan_spark.quality import compare
    from gan_spark.runs import registry
    from gan_spark.training import driver

    with common.lake(arguments) as folder:
        spark = job.session("benchmark: online")
        arriving = os.path.join(folder, "arriving")
        ingested = {"source": "folder", "path": arriving, "new_classes": "add", "validation": 0.0, "test": 0.2}
        lots = {"train_every": arguments.lot, "steps": arguments.more, "files_a_batch": arguments.lot}
        often = {"log_every": 100, "checkpoint_every": 100_000, "sample_every": 100_000}
        training = {"launcher": "local", "seed": arguments.seed, **often}

        def config(lake: str, run: str, classes: int, steps: int, batch: int, **train):
            model = {"name": "lenet", "classes": classes}
            made = common.config(lake, arriving, run, model=model, ingest=ingested, promote={"model": MODEL})
            return dataclasses.replace(
                made,
                stream=dataclasses.replace(made.stream, **(lots | {"files_a_batch": batch})),
                train=dataclasses.replace(made.train, **training, steps=steps, **train),
            )

        lake = os.path.join(folder, "lake")
        first = config(lake, "eight", OLD, arguments.first, 100_000)
        common.say(f"{OLD} classes, {arguments.each} images of each")
        arrive(arguments.data, arriving, range(OLD), arguments.each)
        stream.stream(spark, first)
        driver.train(spark, first)
        registry.promote(lake, "eight", MODEL)
        arrive(arguments.data, arriving, range(OLD, 10), arguments.each)
        figures = {}
        for name, share in SHARES.items():
            common.say(f"train.new_share = {share:g}")
            own = os.path.join(folder, name)
            shutil.copytree(lake, own)
            answer = online.stream(spark, config(own, "online", OLD, arguments.more, arguments.lot, new_share=share))
            versions = registry.read(own, MODEL)["versions"][1:]
            assert len(versions) == answer["rounds"], answer
            figures[name] = [
                {
                    "promoted": version["compared"]["better"],
                    "p": float(f"{version['compared']['p']:.2g}"),
                    "before": accuracies(version["compared"], "before"),
                    **accuracies(version["compared"], "accuracy"),
                }
                for version in versions
            ]
        steps = arguments.first + arguments.more * len(figures["all_alike"])
        whole = config(own, "ten", 10, steps, arguments.lot)
        driver.train(spark, whole)
        compared = compare.compare(spark, whole, registry.read(own, MODEL)["versions"][0])
        figures["ten_from_the_start"] = accuracies(compared, "accuracy")
        figures["eight"] = accuracies(compared, "before")
        spark.stop()
    last = {name: figures[name][-1] for name in SHARES}
    common.finish(
        {
            "benchmark": "online",
            "ratio": round(last["half_new"]["old"] / figures["eight"]["old"], 3),
            "bound": 0.95,
            "figures": figures,
            **{key: getattr(arguments, key) for key in ("each", "lot", "first", "more", "seed")},
        }
    )


if __name__ == "__main__":
    main()
