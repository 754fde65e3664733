"""Quality of a generated table against a split of real images: the report of `jobs/evaluate.py`."""

import dataclasses
import datetime
import hashlib
import itertools
import logging

from pyspark.sql import functions as F

from .. import features, lake, models, progress
from ..config import Config, Evaluate, UserError, check_sections
from ..data import schema, splits
from ..runs import registry, tracking
from ..runs.record import dataset_of
from ..runs.store import Run
from ..sampling import generate
from . import caveats
from .accuracy_score import accuracy_scores
from .measures import (
    class_agreement,
    copies,
    feature_moments,
    held_out_means,
    kid,
    pair_errors,
    paired,
    precision_recall,
    sampled_rows,
)
from .statistics import frechet_distance, inception_score

log = logging.getLogger(__name__)
_UNLABELLED = "expected images that are asked for by class, from which a classifier can learn"
_SAMPLE_BYTES = 2**28  # of a side's features, in float64


def evaluate(spark, config: Config) -> dict:
    """FID, KID, precision, recall and score of the images that the config's run has in its generated table, against
    `evaluate.split`, with the floor beside them.
    """
    config = registry.promoted(config)
    options = config.evaluate
    fake_url = lake.table_url(config)
    check_files(config)
    config, manifest = real_dataset(config)
    real_url = lake.dataset_url(config)
    fake_frame = generate.images_of(spark, config).selectExpr(
        "cast(seed as string) as id", "input", "image", "height", "width", "channels", "run", "step"
    )
    first_row = fake_frame.select("run", "step", "height", "width", "channels").first()
    run, step = first_row["run"], first_row["step"]
    if options.part:
        fake_frame = _translated(spark, fake_frame, run, options.part, fake_url)
    shape = first_row["height"], first_row["width"], first_row["channels"]
    _check_shape(f"table {fake_url} holds", shape, real_url, manifest)
    real_frame = splits.frame(spark, real_url, options.split, options.part)
    # Before a classifier is paid for.
    asked_for = _asked_for(fake_frame, manifest)
    if options.accuracy_score and asked_for is None:
        raise UserError(f"evaluate.accuracy_score = true: {_UNLABELLED}, found others in table {fake_url}")
    sentences = _samples_told(real_frame, fake_frame, options)
    network = features.network(spark, config)
    # Both sides' samples are held on the driver.
    options = dataclasses.replace(options, sample=min(options.sample, _SAMPLE_BYTES // (8 * network.dimensions)))
    sentences += _told(caveats.of_sample_size(options.sample, config.evaluate.sample, network.dimensions))
    log.info("evaluate: %s against %s, split %s, with %s", fake_url, real_url, options.split, network.name)
    # First, as a training may remove the checkpoint meanwhile.
    with progress.part("losses of held-out images", spark):
        held_out = held_out_means(real_frame, run, step, manifest, options.batch_size)
    result = _feature_figures(spark, real_url, real_frame, fake_frame, network, manifest, options)
    with progress.part("classes and pairs", spark):
        result |= {
            **_class_figures(real_frame, asked_for, network, manifest, options.batch_size),
            **(_accuracy_scores(spark, asked_for, real_url, manifest, options) if options.accuracy_score else {}),
            **(_pair_figures(real_frame, fake_frame, network, manifest, options) if options.part else {}),
        }
    result |= {f"held_out_{name}": value for name, value in held_out.items()}
    sentences += _told(caveats.of_fid(result))
    report = {
        **{key: round(value, 6) if isinstance(value, float) else value for key, value in result.items()},
        "table": fake_url,
        "dataset": real_url,
        "fingerprint": manifest.fingerprint,
        "split": options.split,
        "part": options.part,
        "run": run,
        "step": step,
        **({"weights": "newest"} if config.generate.weights == "newest" else {}),
        "evaluated": datetime.datetime.now(datetime.UTC).isoformat(),
        "caveats": sentences,
    }
    return {**report, "report": _written(config, report)}


def _report_urls(config: Config) -> list[str]:
    """Where the config's report is written: beside the table, and where the registry looks."""
    table_url, generated = lake.table_url(config), lake.join(lake.to_url(config.lake), "generated")
    urls = [f"{table_url}.quality.json"]
    if table_url.rpartition("/")[0] != generated:
        name = f"{config.run}-{hashlib.sha256(table_url.encode()).hexdigest()[:8]}.quality.json"
        urls.append(lake.join(generated, name))
    return urls


def _written(config: Config, report: dict) -> str:
    """Writes the report to its places and to the tracking server; its URL."""
    urls = _report_urls(config)
    for url in urls:
        lake.write_figures(config.lake, url, report, "evaluation")
    if tracker := tracking.tracker(config, Run(report["run"])):
        tracker.quality(report, urls[0])
    return urls[0]


def _samples_told(real_frame, fake_frame, options: Evaluate) -> list[str]:
    """The caveats of the samples, which are logged; `UserError` where they are too small to be measured."""
    frames = (real_frame, fake_frame)
    counts = tuple(frame.count() for frame in frames)
    sampled = tuple(frame.where(sampled_rows(frame, options.sample)).count() for frame in frames)
    caveats.check_images(options, real=sampled[0], generated=sampled[1])
    return _told(caveats.of_samples(counts, sampled, options))


def _told(sentences: list[str]) -> list[str]:
    for sentence in sentences:
        log.warning("evaluate: %s", sentence)
    return sentences


def _feature_figures(
    spark, url: str, real_frame, fake_frame, network: features.Network, manifest: schema.Manifest, options: Evaluate
) -> dict:
    """What is measured on the network's features and probabilities of both sides' images."""
    sides = []
    for name, frame, encoding in (("real", real_frame, manifest.encoding), ("generated", fake_frame, "png")):
        with progress.part(f"features of {name} images", spark, frame.count()):
            sides.append(feature_moments(frame, network, manifest.shape, encoding, options.batch_size, options.sample))
    (real, real_sample), (fake, fake_sample) = sides
    halves, samples = [real["half0"], real["half1"]], (real_sample, fake_sample)
    fid = frechet_distance(real["all"], fake["all"])
    floor = frechet_distance(*halves) if min(half.count for half in halves) > 1 else None
    figures = {
        "fid": fid,
        "fid_floor": floor,
        "distinguishable": caveats.is_distinguishable(fid, floor),
        "fid_self": frechet_distance(real["all"], real["all"]),
        "score": inception_score(fake["probabilities"], fake["entropy"]),
        "score_real": inception_score(real["probabilities"], real["entropy"]),
        **kid(spark, *samples),
        **precision_recall(spark, *samples, options.neighbours),
        "real_images": real["all"].count,
        "generated_images": fake["all"].count,
        "features": network.name,
        "features_hash": network.hash,
        "feature_dimensions": len(real["all"].mean),
    }
    if network.kind == "lenet":
        figures["class_shares"] = {
            side: dict(zip(manifest.classes, moments["classes"].mean.round(4).tolist(), strict=True))
            for side, moments in (("real", real), ("generated", fake))
        }
    if options.copies:
        train = splits.frame(spark, url, "train", options.part)
        figures["copies"] = copies(train, network, manifest, options.batch_size, *samples)
    return figures


def _asked_for(fake_frame, manifest: schema.Manifest):
    """The generated images with the index of the class that each was asked for as column `label`; None where not all
    were asked for by class.
    """
    inputs = fake_frame.select("input").distinct().limit(len(manifest.classes) + 1).collect()
    if not {row["input"] for row in inputs} <= set(manifest.classes):
        return None
    indices = F.create_map(*itertools.chain(*((F.lit(name), F.lit(i)) for i, name in enumerate(manifest.classes))))
    return fake_frame.withColumn("label", indices[F.col("input")])


def _accuracy_scores(spark, asked_for, url: str, manifest: schema.Manifest, options: Evaluate) -> dict:
    return accuracy_scores(asked_for, splits.frame(spark, url, "train"), url, manifest, options)


def _class_figures(
    real_frame, asked_for, network: features.Network, manifest: schema.Manifest, batch_size: int
) -> dict[str, float]:
    """How often a lenet is right about the real images, and, where all images were asked for by class, how often the
    network gives them that class.
    """
    figures = {}
    if network.kind == "lenet":
        means = held_out_means(real_frame, network.run, network.step, manifest, batch_size)
        figures["classifier_accuracy"] = means["accuracy"]
    if asked_for is not None:
        asked = asked_for.select("image", F.col("label").alias("class_index"))
        figures["class_agreement"] = class_agreement(asked, network, manifest, batch_size)
    return figures


def _pair_figures(
    real_frame, fake_frame, network: features.Network, manifest: schema.Manifest, options: Evaluate
) -> dict[str, float]:
    """Errors of translated images against the truth, where the dataset has it, and how often a lenet sees the class
    that the original has.
    """
    pairs = paired(real_frame, fake_frame, options.part).persist()
    figures = pair_errors(pairs, manifest)
    if figures.get("pairs") and network.kind == "lenet":
        labelled = pairs.select("image", pairs["label"].alias("class_index"))
        figures["labels_kept"] = class_agreement(labelled, network, manifest, options.batch_size)
    pairs.unpersist()
    return figures


def _translated(spark, fake_frame, run: str, part: str, url: str):
    """Those rows of a translator's table that were to become images of `part`: a table that is added to may hold both
    directions.
    """
    record = Run(run).record()
    if "a" not in generate.taken_by_run(record):
        return fake_frame
    dataset, source = dataset_of(record), "b" if part == "a" else "a"
    ids = spark.read.parquet(
        *(file for split in schema.SPLITS for file in splits.files(dataset, split, source))
    ).select("id")
    translated = fake_frame.join(ids, fake_frame["input"] == ids["id"], "left_semi")
    if not translated.head(1):
        raise UserError(
            f"evaluate.part = {part!r}: table {url} has no image made from one of part {source!r}; make them with"
            f" jobs/generate.py and generate.part = {source!r}"
        )
    return translated


def real_dataset(config: Config) -> tuple[Config, schema.Manifest]:
    """The config with the dataset of the real images in place of its own, and their manifest. `UserError` where they
    cannot be compared with.
    """
    check_sections(config, "evaluate")
    options = config.evaluate
    config = dataclasses.replace(config, dataset=options.dataset or config.dataset)
    url = lake.dataset_url(config)
    manifest = schema.read_manifest(url)
    if not manifest.rows[options.split]:
        raise UserError(f"dataset {url}: its split {options.split!r} has no images to compare with")
    if options.part and options.part not in manifest.parts:
        raise UserError(
            f"evaluate.part = {options.part!r}: dataset {url} has {', '.join(manifest.parts) or 'no parts'}"
        )
    if options.accuracy_score and (options.features != "lenet" or options.split == "train"):
        raise UserError(
            f"evaluate.accuracy_score = true with evaluate.features = {options.features!r} and evaluate.split ="
            f" {options.split!r}: expected 'lenet', which is the classifier, and a split that none is trained on"
        )
    if options.copies and options.split == "train":
        raise UserError(
            "evaluate.copies = true with evaluate.split = 'train': expected images that were not trained on, beside"
            " which generated ones are looked at"
        )
    features.check(config, manifest)
    return config, manifest


def check_files(config: Config) -> None:
    """`UserError` where something else than an evaluation is where the config's would be written."""
    for url in _report_urls(config):
        lake.check_file(url, "evaluation")


def check_settings(config: Config, model) -> None:
    """`UserError` where what section [evaluate] asks for cannot be had of images that a model of this config makes:
    what is known before the config's dataset is there.
    """
    options, takes = config.evaluate, generate.taken_by(config.run, model)
    check_files(config)
    if options.accuracy_score and "label" not in takes:
        raise UserError(f"evaluate.accuracy_score = true: {_UNLABELLED}; model {model.name!r} takes no label")
    caveats.check_images(options, generated=config.generate.images)
    if "a" in takes and options.part and options.part == config.generate.part and not config.generate.append:
        raise UserError(
            f"evaluate.part = {options.part!r} with generate.part = {options.part!r}: expected the other one, as images"
            " are made from those of one part to be like those of the other"
        )
    if options.dataset in ("", config.dataset):
        features.check_settings(options, model.image_size, model.image_size, "the model's are")


def check_dataset(spark, config: Config, model) -> None:
    """`UserError` where there is no dataset with which images that a model of this config makes can be compared."""
    options = config.evaluate
    config, manifest = real_dataset(config)
    url = lake.dataset_url(config)
    if model.name in models.MODELS:  # One from outside may make images of another size.
        shape = (model.image_size, model.image_size, model.channels)
        _check_shape("model.image_size and model.channels make", shape, url, manifest)
    splits.frame(spark, url, options.split, options.part)
    caveats.check_images(options, real=manifest.rows[options.split])


def _check_shape(maker: str, shape: tuple, url: str, manifest: schema.Manifest) -> None:
    if shape != manifest.shape:
        raise UserError(f"{maker} images of {shape}, dataset {url} of {manifest.shape}")
