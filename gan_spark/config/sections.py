"""The sections of a run config, a frozen dataclass each."""

import dataclasses
from typing import Any

from .options import option


@dataclasses.dataclass(frozen=True)
class Ingest:
    """What is read, and how it becomes a dataset: `jobs/ingest.py`."""

    source: str = option(
        "digits",
        "where images come from; or a source of your own, as `package.module:function`",
        choices=("digits", "idx", "folder", "cifar10", "table", "shapes", "kafka"),
        imported=True,
    )
    path: str = option("", "folder, file or table to read, URL or local path; source 'kafka': the topic")
    mode: str = option(
        "replace",
        "what becomes of the dataset that is there: it is replaced, or what its ids do not hold yet is added to it",
        choices=("replace", "append"),
    )
    new_classes: str = option(
        "refuse",
        "mode 'append': labels that the dataset does not have yet; added, they come behind its classes, so that a model"
        " of its own has fewer",
        choices=("refuse", "add"),
    )
    height: int = option(28, "pixels", low=4, high=4096)
    width: int = option(28, "pixels", low=4, high=4096)
    channels: int = option(1, "1 for grey, 3 for RGB", choices=(1, 3))
    fit: str = option("crop", "how another aspect ratio is made to fit", choices=("crop", "pad", "stretch"))
    count: int = option(10000, "source 'shapes': how many pictures to compose", low=1)
    held_out: bool = option(
        True,
        "source 'shapes': some combinations of shape and colour are in split test alone; false composes other pictures,"
        " of all combinations, for a judge to learn from",
    )
    classes: tuple[str, ...] = option(
        (),
        "names of the labels 0, 1, ..., where labels are whole numbers; else the labels that there are, in this order;"
        " where none are given, the labels themselves, sorted (source 'idx': '0' to '9')",
    )
    range: str | tuple[float, ...] = option(
        "type",
        "values of grey images with more than 8 bits that become black and white: what the type holds (nothing is known"
        ' of floating point, which is as "file"), what each file\'s pixels span, or [low, high]',
        choices=("type", "file"),
    )
    encoding: str = option(
        "auto", "raw pixels, PNG bytes, or PNG from 64 KiB of RGB pixels on", choices=("auto", "raw", "png")
    )
    validation: float = option(0.1, "share of the images for validation", low=0.0, high=0.9)
    test: float = option(0.1, "share for testing, where the source has no test split", low=0.0, high=0.9)
    planned_workers: int = option(
        4, "ranks that will read at once; row groups are made small enough for several a rank", low=1, high=4096
    )
    max_file_mb: int = option(64, "larger files are rejected", low=1, high=1024)
    max_megapixels: int = option(64, "images that declare more pixels are rejected unread", low=1, high=1024)
    id_column: str = option("id", "source 'table': unique string id; empty for a hash of the image")
    image_column: str = option(
        "content", "source 'table': encoded image bytes, a struct of `bytes` and `path`, or Spark's image struct"
    )
    label_column: str = option("", "source 'table': class of the image, text or whole numbers; empty for none")
    split_column: str = option(
        "", "source 'table': train, validation or test; empty for what the files' names say, if they do"
    )
    caption_column: str = option(
        "", "source 'table': text about the image, one phrasing a line or an array of them; empty for none"
    )
    embedding_column: str = option(
        "", "source 'table': array of numbers, an embedding of the image's text or several end to end; empty for none"
    )
    parts: str = option(
        "",
        "what the images are divided into, for models that read two streams",
        choices=("", "classes", "edges", "recoloured", "labels"),
    )
    domains: tuple[str, ...] = option((), "parts 'classes': the class that is domain a, and the one that is domain b")
    labels: int = option(0, "parts 'labels': training images that keep their label, as many of each class", low=0)


@dataclasses.dataclass(frozen=True)
class Stream:
    """How what arrives at `ingest.path` is added to a dataset: `jobs/stream.py`."""

    trigger: str = option(
        "availableNow", "what is there by now, and then the job ends; or how often it looks, for instance '10 seconds'"
    )
    files_a_batch: int = option(1000, "files of a micro-batch at most", low=1)
    train_every: int = option(
        0,
        "images that are added before the promoted version of promote.model is trained on, measured, and promoted if it"
        " is better; 0 for never",
        low=0,
    )
    steps: int = option(500, "for which it is trained on each time", low=1)
    servers: str = option("", "source 'kafka': its brokers, as host:9092,other:9092")
    client: str = option("", "source 'kafka': file of properties of its client (security.protocol=SSL, ...), if any")


@dataclasses.dataclass(frozen=True)
class Score:
    """What answers to what arrives as sections [ingest] and [stream] say: `jobs/score.py`."""

    model: str = option(
        "default", "name of the registered model; each micro-batch is answered by the version that is promoted then"
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how large and on what: `jobs/train.py`, `jobs/finetune.py`."""

    steps: int = option(1000, "global steps", low=1)
    batch_size: int = option(64, "global batch, shared by all workers", low=1)
    workers: int = option(1, "Horovod ranks", low=1, high=4096)
    statistics: str = option(
        "auto",
        "batch norm, feature matching and the like are over each rank's images, or over the whole batch's; auto: the"
        " batch's where a rank has fewer than 8",
        choices=("auto", "rank", "batch"),
    )
    launcher: str = option("spark", "Horovod on Spark, or this process alone", choices=("spark", "local"))
    threads: int = option(0, "TensorFlow threads a rank; 0 for spark.task.cpus", low=0, high=256)
    precision: str = option("float32", "compute type of the layers", choices=("float32", "mixed_bfloat16"))
    split: str = option("train", "split to train on", choices=("train", "validation", "test"))
    snapshot: int = option(
        0, "snapshot of the dataset to train on; 0 for the newest when the run starts, and then for that one", low=0
    )
    start_from: str = option(
        "",
        "run of the lake with the same model, whose newest weights and optimizer state this run begins with; it counts"
        " steps, and reads rows, from the beginning. `promoted:NAME` is the promoted version of a registered model, and"
        " a fresh run where there is none yet. Classifiers may have more classes than that run's",
    )
    new_share: float = option(
        0.0,
        "with start_from: share of each batch that is images beyond the snapshot which that run was trained on; 0 for"
        " all images alike",
        low=0.0,
        high=1.0,
    )
    seed: int = option(0, "of weights, latents and shuffling", low=0, high=2**31 - 1)
    shuffle_buffer: int = option(8192, "images that a rank shuffles among (at most 48 MiB)", low=1)
    log_every: int = option(50, "steps", low=1)
    sample_every: int = option(500, "steps", low=1)
    checkpoint_every: int = option(500, "steps", low=1)
    validate_every: int = option(
        0, "steps between measures on split validation, the best of which keeps its checkpoint; 0 for none", low=0
    )
    patience: int = option(0, "measures in a row that are not better, after which training stops; 0 for never", low=0)
    keep: int = option(3, "newest checkpoints that are kept", low=1)
    restarts: int = option(2, "times that a failed job starts again from its last checkpoint", low=0, high=100)
    start_timeout: int = option(120, "seconds to wait for a task slot a rank", low=1)


@dataclasses.dataclass(frozen=True)
class Generate:
    """What is made, and where it is written: `jobs/generate.py`."""

    images: int = option(64, "how many", low=1)
    first_seed: int = option(
        0, "seeds count up from here, one an image; a row of the dataset has its own", low=0, high=2**62
    )
    batch_size: int = option(64, "images a forward pass", low=1, high=65536)
    partitions: int = option(0, "Spark tasks; 0 for the session's parallelism", low=0)
    checkpoint: int = option(0, "step of the checkpoint; 0 for the newest", low=0)
    weights: str = option(
        "average",
        "models that keep moving averages: images by those, or by the newest weights, which the table's column `model`"
        " then says",
        choices=("average", "newest"),
    )
    append: bool = option(
        False, "Delta tables: what the table does not have yet of this run and step is added, and the rest of it stays"
    )
    label: str = option("", "models that take a label: the class to make; empty for each in turn")
    split: str = option(
        "test",
        "models that take an image or text: rows of this split of the dataset",
        choices=("train", "validation", "test"),
    )
    part: str = option("", "models that translate: the domain to start from", choices=("", "a", "b"))
    captions: tuple[str, ...] = option((), "models that take text: these sentences instead of the dataset's")
    model: str = option("", "name of a registered model, whose promoted version is used instead of the config's run")
    table: str = option("", "name or URL of the table; empty for the run's (or the registered model's) name")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What generated images are compared with, and how: `jobs/evaluate.py`, `jobs/attributes.py`."""

    features: str = option("lenet", "feature network", choices=("lenet", "InceptionV3"))
    dataset: str = option(
        "", "real images to compare with, whose labels train the lenet classifier; empty for the run's dataset"
    )
    weights: str = option("imagenet", "InceptionV3: 'imagenet', or a Keras weights file (.h5)")
    split: str = option("test", "real images to compare with", choices=("train", "validation", "test"))
    part: str = option("", "real images of this domain alone", choices=("", "a", "b"))
    batch_size: int = option(100, "images a forward pass", low=1, high=4096)
    sample: int = option(5000, "about as many images of each side for KID, precision and recall", low=10, high=50000)
    neighbours: int = option(3, "k of precision and recall", low=1, high=100)
    copies: bool = option(
        False,
        "measure the share of generated images that are nearer to a training image than 99 of 100 images of the split"
        " are; every training image is looked at",
    )
    accuracy_score: bool = option(
        False,
        "measure how often a classifier that learns from the generated images alone is right about the split, beside"
        " one that learns from as many real ones",
    )
    reader: str = option("", "pictures of source 'shapes': run of the attributes model that reads generated ones")
    classifier_steps: int = option(2000, "steps that trains the lenet classifier", low=1)
    classifier_batch: int = option(128, "global batch of the lenet classifier", low=1)


@dataclasses.dataclass(frozen=True)
class Latent:
    """Walks in a generator's latent space: `jobs/latent.py`."""

    paths: int = option(8, "pairs of seeds to go between", low=1, high=100)
    steps: int = option(9, "images of a path, both ends included", low=2, high=100)
    arithmetic: tuple[str, ...] = option((), "classes A, B, C of A - B + C; empty for none")
    exemplars: int = option(3, "images of each class whose latents are averaged", low=1, high=100)


@dataclasses.dataclass(frozen=True)
class Inpaint:
    """Which holes are filled, and how z is searched for: `jobs/inpaint.py`."""

    mask: str = option(
        "centre",
        "what is missing: a square, single pixels, or what `masks` says",
        choices=("centre", "random", "table"),
    )
    hole: float = option(0.25, "share of the image that is missing, for 'centre' and 'random'", low=0.01, high=0.95)
    masks: str = option(
        "",
        "mask 'table': Parquet folder with `id` and `mask`, a PNG of the image's size in which other than 0 is missing",
    )
    split: str = option("test", "images to mend", choices=("train", "validation", "test"))
    images: int = option(200, "how many", low=1)
    batch_size: int = option(25, "images that are searched for at once", low=1, high=4096)
    draws: int = option(4096, "z that are drawn, among which the search begins", low=1, high=2**20)
    starts: int = option(8, "how many of the draws that come nearest to an image are searched from", low=1, high=1024)
    iterations: int = option(200, "steps of Adam on z", low=0)
    rate: float = option(0.03, "Adam's learning rate", low=0.0, high=1.0)
    clip: float = option(
        0.0,
        "bound of z's numbers, to which each step holds them: 1 in the paper, whose z is uniform; 0 for none",
        low=0.0,
    )
    perceptual: float = option(
        0.1, "lambda, weight of the perceptual loss; 0.003 in the paper, 0.2 in its authors' code", low=0.0
    )
    window: int = option(7, "side of the window in which pixels near the hole count more", low=1, high=99)
    blend: str = option(
        "none",
        "how the hole is filled in: as it is, or by Poisson editing, as in the paper",
        choices=("none", "poisson"),
    )


@dataclasses.dataclass(frozen=True)
class Dream:
    """What a network is made to see, and how: `jobs/dream.py`."""

    network: str = option("InceptionV3", "name of a Keras network, a model file (.keras, .h5) in the lake, or 'run'")
    weights: str = option("imagenet", "Keras network: 'imagenet', a weights file (.h5), or empty for random ones")
    run: str = option("", "network 'run': name of a lenet's run")
    layers: tuple[str, ...] = option(("mixed3", "mixed5"), "whose activations are driven up")
    weights_of_layers: tuple[float, ...] = option((), "one a layer; empty for 1 each")
    method: str = option("gradient", "ascent by normalised gradients, or L-BFGS", choices=("gradient", "lbfgs"))
    octaves: int = option(3, "sizes, from small to the image's own", low=1, high=20)
    octave_scale: float = option(1.4, "between sizes", low=1.01, high=4.0)
    rounds: int = option(
        1, "L-BFGS: rounds of each octave, each on the image shifted anew; a picture is kept of each", low=1, high=1000
    )
    iterations: int = option(20, "steps of each octave; for L-BFGS evaluations of each round", low=0, high=10000)
    step: float = option(0.02, "gradient: length of a step, for pixels in [-1, 1]", low=0.0, high=2.0)
    jitter: int = option(
        4,
        "pixels that the image is shifted by at most before each step, and for L-BFGS before each of several rounds",
        low=0,
        high=256,
    )
    continuity: float = option(0.1, "weight of the total variation, with exponent 1.25", low=0.0)
    l2: float = option(0.02, "weight of the squared image", low=0.0)
    split: str = option("test", "images to dream on", choices=("train", "validation", "test"))
    images: int = option(16, "how many", low=1)


@dataclasses.dataclass(frozen=True)
class Enlarge:
    """Images of any size, enlarged by a run's srgan: `jobs/enlarge.py`."""

    input: str = option("", "an image file, or a folder of them")
    originals: bool = option(
        False, "each image is reduced by the model's factor first, and what is made of that is compared with it"
    )


@dataclasses.dataclass(frozen=True)
class LeNet:
    """BigDL's LeNet: `jobs/lenet.py`."""

    epochs: int = option(20, "passes over split train", low=1)
    batch_size: int = option(512, "global batch; a multiple of the session's cores", low=1)
    hidden: int = option(100, "units of the hidden layer", low=1)
    rate: float = option(0.4, "SGD's learning rate", low=0.0, high=10.0)
    decay: float = option(0.0002, "the rate falls as 1 / (1 + decay * step)", low=0.0)
    momentum: float = option(0.0, "SGD's", low=0.0, high=0.99)


@dataclasses.dataclass(frozen=True)
class Tracking:
    """MLflow, told of a run by the jobs that train, generate and evaluate."""

    uri: str = option("", "tracking URI of MLflow, for instance sqlite:///mlflow.db or databricks; empty for none")
    experiment: str = option("gan_spark", "name of the experiment; on Databricks a path, /Users/...")
    artifacts: str = option("", "where a new experiment keeps its files; empty for what MLflow chooses")


@dataclasses.dataclass(frozen=True)
class Promote:
    """`jobs/promote.py`."""

    model: str = option("default", "name of the registered model")
    only_if_better: bool = option(
        True,
        "only where the run's FID is below that of the promoted version, which is measured anew where it was not"
        " measured alike",
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`jobs/verdict.py`."""

    model: str = option("default", "name of the registered model, whose challenger is judged")
    act: bool = option(
        False, "promote a challenger that is better, end one that is not, where the evidence allows; else only say so"
    )


@dataclasses.dataclass(frozen=True)
class Featurize:
    """Features of a network and a logistic regression on them: `jobs/featurize.py`."""

    network: str = option("InceptionV3", "name of a Keras network, whose pooled features are classified")
    weights: str = option(
        "imagenet", "'imagenet', a weights file (.h5) of the network without its top, or empty for random ones"
    )
    iterations: int = option(20, "of the logistic regression at most", low=1)
    regularisation: float = option(0.05, "of the logistic regression", low=0.0)
    elastic_net: float = option(0.3, "share of L1 in it; the rest is L2", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """What `jobs/finetune.py` does beside training."""

    balance: bool = option(False, "weigh images so that every class counts the same (sets model.class_weights)")


@dataclasses.dataclass(frozen=True)
class Predict:
    """`jobs/predict.py`."""

    input: str = option("", "an image file, a folder of images, or a URL")
    top: int = option(3, "classes that are named of a single image", low=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole. `model` is the `Config` of the model that `model.name` names."""

    run: str = option(dataclasses.MISSING, "name of the run, under which all that comes of it is found")
    dataset: str = option(dataclasses.MISSING, "name of the dataset that is made or read")
    model: Any = None
    lake: str = option("lake", "root of the data lake; URL or local path")
    tables: str = option("parquet", "format of tables of generated images and of rejects", choices=("parquet", "delta"))
    ingest: Ingest = Ingest()
    stream: Stream = Stream()
    score: Score = Score()
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    latent: Latent = Latent()
    inpaint: Inpaint = Inpaint()
    dream: Dream = Dream()
    enlarge: Enlarge = Enlarge()
    lenet: LeNet = LeNet()
    featurize: Featurize = Featurize()
    finetune: Finetune = Finetune()
    predict: Predict = Predict()
    promote: Promote = Promote()
    verdict: Verdict = Verdict()
    tracking: Tracking = Tracking()
