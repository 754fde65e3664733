"""HTML page about a run: what it makes beside what it learnt from, how it got there, and its figures.

Everything is in the one file.
"""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np

from .. import features, lake
from ..config import Config, leaves
from ..data import images, schema, splits
from ..runs import catalogue, registry
from ..runs.record import dataset_of
from ..runs.store import Run
from ..sampling import generate
from . import evaluate, statistics

log = logging.getLogger(__name__)
_SHOWN, _COMPARED, _NEIGHBOURS = 64, 8, 4
_SAMPLES = 6  # over time
_CLASSES = 30  # of a table of shares


def report(spark, config: Config) -> dict:
    """Writes `<lake>/reports/<run>.html` from the run, its generated table and, where there is one, its evaluation."""
    config = registry.promoted(config)
    run, table, url = Run.of(config), lake.table_url(config), lake.report_url(config)
    lake.check_file(url, "page")
    record = run.record()
    generated = generate.images_of(spark, config)
    measured = f"{table}.quality.json"
    quality = lake.read_record(config.lake, measured) if lake.exists(measured) else {}
    if (quality.get("run"), quality.get("step")) != tuple(generated.select("run", "step").first()):
        quality = {}  # of other images in the table
    lines = [line for line in run.metrics() if "scalars" in line]
    sections = _sections(spark, config, run, record, generated, lines)
    if quality.get("features", "").startswith("lenet"):
        sections.insert(
            1,
            {
                "title": "By class",
                "text": "What the classifier of the evaluation makes of the generated images.",
                "rows": by_class(spark, config, generated),
            },
        )
    steps = f"{lines[-1]['step']:,} steps" if lines else "not trained"
    html = page(
        config.run,
        f"{record['config']['model']['name']} on {record['dataset']['url'].rsplit('/', 1)[1]}, {steps},"
        f" {record['created'][:10]}",
        list(_cards(quality)),
        [*_shares(quality), *sections],
        list(leaves(catalogue.lineage(config.lake, config.run))),
        quality.get("caveats", []),
    )
    lake.check_file(url, "page")  # Drawing took a while.
    lake.write_bytes(url, html)
    return {"report": url, "run": run.url, "table": table, "bytes": len(html)}


def page(
    title: str,
    subtitle: str,
    cards: list[tuple[str, str, str]],
    sections: list[dict],
    lineage: list[tuple],
    caveats: Sequence[str] = (),
) -> bytes:
    """A self-contained page, which says of itself that it is ours.

    `cards` are (name, value, note), `sections` {"title", "text", "pictures": as `drawn` gives, "rows": of a table, a
    dict each}, all but the title optional, `lineage` (name, value).
    """
    import jinja2

    template = resources.files("gan_spark.quality").joinpath("report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(
        title=title,
        subtitle=subtitle,
        cards=cards,
        caveats=caveats,
        sections=[{"text": "", "rows": [], "pictures": [], **section} for section in sections],
        lineage=lineage,
    )
    return html.encode()


def _sections(spark, config: Config, run: Run, record: dict, generated, lines: list[dict]) -> list[dict]:
    """Sections of the page with pictures; `lines` are the run's metrics."""
    url = dataset_of(record)
    manifest = schema.read_manifest(url)
    rows = generated.orderBy("seed").limit(_SHOWN).select("image").collect()
    fakes = np.stack([images.decode_png(row["image"]) for row in rows])
    split = config.evaluate.split if manifest.rows.get(config.evaluate.split) else "train"
    real_frame = splits.frame(spark, url, split, config.evaluate.part).select("id", "image")
    rows = splits.lowest_hashes(real_frame, _SHOWN).collect()
    real = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    train = splits.frame(spark, url, "train", config.evaluate.part)
    return [
        {
            "title": "Generated, and real",
            "pictures": [
                _picture(images.grid(fakes), "generated, seeds in order"),
                _picture(images.grid(real), f"real, split {split}"),
            ],
        },
        {
            "title": "Nearest real images",
            "text": (
                f"A generated image, then the {_NEIGHBOURS} images of the training split that are nearest to it, pixel"
                " by pixel: were they the same, it would have learnt by heart."
            ),
            "pictures": [_neighbours(train, manifest, fakes[:_COMPARED])],
        },
        {"title": "From fixed seeds, over time", "pictures": list(_samples(run))},
        {"title": "Losses", "pictures": [_curves(lines)] if lines else []},
    ]


def picture(url: str, width: int = 480) -> str:
    """An HTML element that shows the PNG at `url`, for a notebook's displayHTML."""
    return (
        f'<img src="data:image/png;base64,{base64.b64encode(lake.read_bytes(url)).decode()}" width="{width}"'
        ' style="image-rendering: pixelated">'
    )


def _cards(quality: dict) -> Iterator[tuple[str, str, str]]:
    if not quality:
        yield "quality", "not measured", "jobs/evaluate.py does"
        return
    yield (
        "FID",
        f"{quality['fid']:.2f}",
        (
            f"floor {quality['fid_floor']:.2f}: two halves of the real images"
            + (", from which it cannot be told" if quality.get("distinguishable") is False else "")
            if quality.get("fid_floor") is not None
            else ""
        ),
    )
    error = quality.get("kid_error")  # Reports of before have a deviation of subsets instead, which was none.
    yield "KID x 1000", f"{1000 * quality['kid']:.1f}", f"± {1000 * error:.1f}, one standard error" if error else ""
    yield "precision", f"{quality['precision']:.3f}", "generated images that look real"
    yield "recall", f"{quality['recall']:.3f}", "real images that could be generated"
    if "accuracy_score" in quality:
        yield (
            "accuracy score",
            f"{quality['accuracy_score']:.1%}",
            (
                f"a classifier's that learnt from {quality['accuracy_score_images']:,} generated images alone;"
                f" {quality['accuracy_score_real']:.1%} from as many real ones"
            ),
        )
    if "copies" in quality:
        yield "copies", f"{quality['copies']:.1%}", "nearer to a training image than 99 of 100 held-out ones"
    if "class_agreement" in quality:
        yield (
            "asked for a class",
            f"{quality['class_agreement']:.1%}",
            f"given it; real images {quality.get('classifier_accuracy', 0):.1%}",
        )


def _shares(quality: dict) -> Iterator[dict]:
    if shares := quality.get("class_shares"):
        rows = [
            {"class": name, "real": f"{share:.1%}", "generated": f"{shares['generated'][name]:.1%}"}
            for name, share in list(shares["real"].items())[:_CLASSES]
        ]
        text = "As the classifier sees them. In its features, FID is mostly the distance between these."
        yield {"title": "Share of each class", "text": text, "rows": rows}


def _picture(pixels: np.ndarray, caption: str, width: int = 440) -> dict:
    return {
        "kind": "pixels",
        "data": base64.b64encode(images.encode_png(pixels)).decode(),
        "width": min(width, 3 * pixels.shape[1]),
        "caption": caption,
    }


def _samples(run: Run) -> Iterator[dict]:
    fs, path = lake.filesystem(run.path("samples"))
    names = sorted(name for name in fs.find(path) if name.endswith(".png")) if fs.exists(path) else []
    for place in sorted({round(index) for index in np.linspace(0, len(names) - 1, _SAMPLES)}) if names else ():
        step = int(names[place].rsplit("step-", 1)[1].removesuffix(".png"))
        yield _picture(images.decode_png(fs.cat_file(names[place])), f"step {step:,}", 290)


def _curves(lines: list[dict]) -> dict:
    """Every scalar of the run's metrics over its steps."""
    drawing, axes = figure()
    names = dict.fromkeys(name for line in lines for name in line["scalars"])
    for name in names:
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line["scalars"]), strict=True)
        axes.plot(steps, values, label=name, linewidth=1.2)
    axes.set_xlabel("step")
    return drawn(drawing, axes)


def figure():
    """(A figure as wide as the page, its axes.)"""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    return drawing, drawing.add_subplot()


def drawn(drawing, axes, caption: str = "") -> dict:
    """The picture of a `figure`, with a grid and a legend beside it."""
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    out = io.BytesIO()
    drawing.savefig(out, format="png")
    return {"kind": "curve", "data": base64.b64encode(out.getvalue()).decode(), "width": 900, "caption": caption}


def _neighbours(train, manifest: schema.Manifest, fakes: np.ndarray) -> dict:
    """A sheet with each of the generated images, uint8 [n, h, w, c], and the images of the DataFrame `train` nearest to
    it, in a row.
    """
    targets = fakes.reshape(len(fakes), -1).astype(np.float32)

    def partial(rows: Iterator) -> Iterator[list]:
        nearest = [[] for _ in targets]
        for chunk in splits.chunks((row["image"] for row in rows), 1024):
            pixels = schema.unpack(chunk, manifest.shape, manifest.encoding)
            distances = statistics.squared_distances(targets, pixels.reshape(len(chunk), -1).astype(np.float32))
            for neighbours, row in zip(nearest, distances, strict=True):
                neighbours += [(float(row[i]), pixels[i].tobytes()) for i in np.argsort(row)[:_NEIGHBOURS]]
                neighbours[:] = sorted(neighbours)[:_NEIGHBOURS]
        yield nearest

    def merge(a: list, b: list) -> list:
        return [sorted(x + y)[:_NEIGHBOURS] for x, y in zip(a, b, strict=True)]

    nearest = train.select("image").rdd.mapPartitions(partial).treeReduce(merge)
    sheet = [
        image
        for fake, neighbours in zip(fakes, nearest, strict=True)
        for image in (fake, *(np.frombuffer(data, np.uint8).reshape(manifest.shape) for _, data in neighbours))
    ]
    return _picture(
        images.grid(np.stack(sheet), 2 * (1 + _NEIGHBOURS)), "generated, then its nearest; two of them a line", 600
    )


def by_class(spark, config: Config, generated) -> list[dict]:
    """For each class: its share of the real test images, of the generated ones by the evaluation's classifier, and,
    where images were asked for by class, how many of those were given it.
    """
    config, manifest = evaluate.real_dataset(config)
    network = features.network(spark, config)
    classes = set(manifest.classes)

    def partial(rows: Iterator) -> Iterator[tuple]:
        apply = features.function(network)
        for chunk in splits.chunks(rows, 100):
            _, probability = apply(schema.unpack([row["image"] for row in chunk], manifest.shape, "png"))
            yield from (
                (row["input"] if row["input"] in classes else None, int(index))
                for row, index in zip(chunk, probability.argmax(1), strict=True)
            )

    counts = generated.select("input", "image").rdd.mapPartitions(partial).countByValue()
    real = {
        row["label"]: row["count"]
        for row in (
            splits.frame(spark, lake.dataset_url(config), config.evaluate.split).groupBy("label").count().collect()
        )
    }
    asked = {name: sum(count for (class_name, _), count in counts.items() if class_name == name) for name in classes}
    rows = []
    for index, name in enumerate(manifest.classes):
        seen = sum(count for (_, seen_index), count in counts.items() if seen_index == index)
        row = {
            "class": name,
            "real": f"{real.get(index, 0) / max(sum(real.values()), 1):.1%}",
            "generated": f"{seen / max(sum(counts.values()), 1):.1%}",
        }
        rows.append(
            {**row, "asked for and given": f"{counts.get((name, index), 0) / asked[name]:.1%}"} if asked[name] else row
        )
    return rows
