"""Nothing of the user's is ever removed: whatever replaces a folder proves first that this project made it."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_config
from PIL import Image

from gan_spark import lake as lakes
from gan_spark.config import UserError, parse
from gan_spark.data import images, ingest
from gan_spark.lake import tables
from gan_spark.ml import featurize
from gan_spark.quality import attributes, evaluate, report
from gan_spark.runs import catalogue, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import dream, generate, latent
from gan_spark.training import driver

# Every call that removes or replaces something in the lake, by file, with what shows that it is ours.
CALLS = {
    "data/append.py": {"remove": "staged here"},
    "data/petastorm_view.py": {"remove": "Hadoop's checksum of the metadata that it has just written"},
    "data/snapshots.py": {"remove": "files that a manifest of the dataset names, or that a job wrote aside in it"},
    "data/ingest.py": {"remove": "staged here", "replace": "check_replaceable", "rm_file": "in a folder staged here"},
    "features/classifier.py": {"replace": "check_is_run", "remove": "a run of its own, named by chance"},
    "lake/files.py": {"rm": "`remove` itself"},
    "lake/ownership.py": {},
    "lake/swap.py": {"remove": "`replace` itself", "rm": "staged, as its OWNER says"},
    "lake/tables.py": {"remove": "staged here", "replace": "check_replaceable"},
    "ml/featurize.py": {"remove": "staged here", "replace": "check_replaceable"},
    "serving/scoring.py": {"remove": "a file of its own table, check_replaceable, named after stream and micro-batch"},
    "serving/export.py": {"remove": "staged here", "replace": "check_replaceable"},
    "runs/store.py": {"remove": "checkpoints of a run, by check_is_run"},
    "training/driver.py": {"remove": "a run that this job began, as its owner's token says"},
    "doctor.py": {"remove": "a probe, named by chance"},
    "training/ranks.py": {"remove": "a probe, named by chance"},
    "data/downloads.py": {"remove": "a partial file that it fetched"},
}


def test_every_call_that_removes_or_replaces_is_listed():
    pattern = re.compile(
        r"(?:lake|fs|os)\.(remove|replace|replace_all|rm|rm_file|rmtree)\(|(?<![\w.])(remove)\(url|overwrite\(\)"
    )
    calls = {}
    for path in sorted((ROOT / "gan_spark").rglob("*.py")):
        if pattern.search(path.read_text()):
            calls.setdefault(path.relative_to(ROOT / "gan_spark").as_posix(), True)
    assert calls.keys() <= CALLS.keys(), "a new call that removes or replaces needs a proof, and a line in CALLS"


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A folder of somebody else's, with what proves nothing in it."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    (folder / "_SUCCESS").write_text("")
    return folder


def untouched(folder: Path) -> bool:
    return sorted(os.listdir(folder)) == ["_SUCCESS", "chapter.txt"] and (folder / "chapter.txt").read_text()


def place(stranger: Path, url: str) -> Path:
    """The stranger's folder, moved to where a job writes."""
    path = Path(lakes.filesystem(url)[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(stranger, path)
    return path


@pytest.fixture(scope="module")
def trained(spark, lake, digits):
    config = make_config(lake, "gan", run="owner", train={"steps": 2}, generate={"images": 4})
    driver.train(spark, config)
    return config


def test_generate_leaves_a_strangers_folder_alone(spark, trained, stranger):
    config = make_config(trained.lake, "gan", run="owner", generate={"images": 4, "table": str(stranger)})
    with pytest.raises(UserError, match="thesis is there, and is not replaced: .*generated images .*found chapter.txt"):
        generate.generate(spark, config)
    assert untouched(stranger)


@pytest.mark.parametrize("place_of", ["dataset", "rejects", "displaced"])
def test_ingest_leaves_a_strangers_folder_alone(spark, stranger, tmp_path, place_of):
    config = make_config(str(tmp_path / "lake"))
    url = lakes.dataset_url(config)
    places = {"dataset": url, "rejects": f"{url}.rejected", "displaced": lakes.displaced(url)}
    path = place(stranger, places[place_of])
    with pytest.raises(UserError, match="is there, and is not replaced: .*found chapter.txt"):
        ingest.ingest(spark, config)
    assert untouched(path)


def test_featurize_leaves_a_strangers_folder_alone(spark, lake, digits, stranger):
    config = parse({"run": "stranger", "dataset": "digits", "lake": lake, "featurize": {"network": "MobileNetV2"}})
    path = place(stranger, lakes.pipeline_url(config))
    with pytest.raises(
        UserError, match="pipelines/stranger is there, .*pipeline that gan_spark made, found chapter.txt"
    ):
        featurize.featurize(spark, config)
    assert untouched(path)


def test_a_run_is_not_begun_in_a_strangers_folder(spark, lake, digits, stranger):
    config = make_config(lake, "gan", run="not-a-run")
    path = place(stranger, Run.of(config).url)
    with pytest.raises(UserError, match="not-a-run is there, and is no run of gan_spark's: found _SUCCESS in it"):
        driver.train(spark, config)
    assert untouched(path)


@pytest.mark.parametrize("kind", ["predictions", "inpainted images", "dreams"])
def test_tables_are_not_written_over_a_strangers_folder(spark, stranger, kind):
    with (
        pytest.raises(UserError, match=f"expected nothing, an empty folder or {kind} .*found chapter.txt"),
        tables.replacing(spark.range(3), str(stranger), kind),
    ):
        pass
    assert untouched(stranger)


def test_somebodys_own_table_is_not_ours_for_its_success(spark, tmp_path):
    """Nor is one of ours of another kind, nor one that somebody has put a file into."""
    theirs, ours = f"file://{tmp_path}/theirs", f"file://{tmp_path}/ours"
    spark.range(3).write.parquet(theirs)
    with pytest.raises(UserError, match="found no _made_by_gan_spark.json in it"):
        lakes.check_replaceable(theirs, generate.KIND, generate.COLUMNS)
    for _ in range(2):
        with tables.replacing(spark.range(3), ours, "predictions"):
            pass
    with pytest.raises(UserError, match="found predictions, as its _made_by_gan_spark.json says"):
        lakes.check_replaceable(ours, "dreams", ["id"])
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="found notes.txt"):
        lakes.check_replaceable(ours, "predictions", ["id"])
    (tmp_path / "ours" / "notes.txt").unlink()
    spark.range(3).selectExpr("id as other").write.mode("overwrite").parquet(theirs)
    shutil.copy(tmp_path / "ours" / lakes.OWNER, tmp_path / "theirs")
    with pytest.raises(UserError, match="found other columns than its _made_by_gan_spark.json says"):
        lakes.check_replaceable(theirs, "predictions", ["id"])


def test_a_table_of_before_is_ours_by_its_columns(spark, tmp_path):
    url = f"file://{tmp_path}/former"
    spark.range(3).write.parquet(url)
    lakes.check_replaceable(url, "predictions", ["id"])
    with tables.replacing(spark.range(4), url, "predictions"):
        pass
    assert spark.read.parquet(url).count() == 4


def test_a_table_outside_the_lake_leaves_a_picture_of_its_name_alone(spark, trained, tmp_path):
    (tmp_path / "cats.png").write_text("mine")
    table = {"images": 4, "table": str(tmp_path / "cats")}
    with pytest.raises(UserError, match="cats.png is there, and is not replaced: expected nothing or picture"):
        generate.generate(spark, make_config(trained.lake, "gan", run="owner", generate=table))
    assert (tmp_path / "cats.png").read_text() == "mine" and not (tmp_path / "cats").exists()


FILES = {
    "reports/mine.html": report.report,
    "generated/mine.quality.json": evaluate.evaluate,
    "generated/mine.attributes.json": attributes.attributes,
    "generated/mine.png": generate.generate,
    "generated/mine.paths.png": latent.latent,
    "generated/mine.arithmetic.png": latent.latent,
}


@pytest.mark.parametrize("place", FILES)
def test_a_strangers_file_beside_tables_is_left_alone_before_any_work(spark, tmp_path, place):
    """There is not even a run: it is the first thing that is looked at."""
    path = tmp_path / place
    path.parent.mkdir()
    path.write_text('{"notes": "mine"}')
    config = make_config(str(tmp_path), "gan", "mine", evaluate={"reader": "r"}, latent={"arithmetic": ("1", "2", "3")})
    with pytest.raises(
        UserError, match=f"{path.name} is there, and is not replaced: .* found another file; name anoth"
    ):
        FILES[place](spark, config)
    assert path.read_text() == '{"notes": "mine"}'


@pytest.mark.slow
def test_a_strangers_picture_beside_dreams_is_left_alone(spark, lake, digits):
    path = Path(lake) / "generated" / "dreamt-dream.png"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="dreamt-dream.png is there, and is not replaced"):
        dream.dream(spark, make_config(lake, "gan", "dreamt", dream={"network": "nosuch"}))
    assert path.read_text() == "mine"


def test_what_gan_spark_drew_it_replaces_now_and_of_before(tmp_path):
    url, pixels = f"file://{tmp_path}/grid.png", np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8)
    png = images.encode_png(images.grid(pixels))
    lakes.write_bytes(url, png)  # as a former version did
    for _ in range(2):
        lakes.write_picture(url, png)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.text == {"Software": "gan_spark"}
    for theirs in (images.encode_png(pixels[0]), _compressed(images.grid(pixels), 6)):
        (tmp_path / "grid.png").write_bytes(theirs)
        with pytest.raises(UserError, match="grid.png is there, and is not replaced"):
            lakes.write_picture(url, png)


def _compressed(pixels: np.ndarray, level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=level)
    return out.getvalue()


def test_what_gan_spark_measured_it_replaces_now_and_of_before(tmp_path):
    url = f"file://{tmp_path}/table.quality.json"
    former = {"fid": 1.0, "kid": 0.0, "precision": 1.0, "recall": 1.0, "table": "t"}
    lakes.write_json(url, former)
    for _ in range(2):
        lakes.write_figures(str(tmp_path), url, {"figure": 1}, "evaluation")
    assert lakes.read_json(url) == {"made_by": "gan_spark", "figure": 1}
    for theirs in ('{"fid": 1.0}', "[1]", "no JSON"):
        (tmp_path / "table.quality.json").write_text(theirs)
        with pytest.raises(UserError, match="expected nothing or evaluation that gan_spark made"):
            lakes.write_figures(str(tmp_path), url, former, "evaluation")


def test_a_page_of_gan_spark_is_replaced_now_and_of_before(tmp_path):
    import jinja2

    text = (ROOT / "gan_spark" / "quality" / "report.html").read_text()
    meta = '<meta name="generator" content="gan_spark">\n'
    page = jinja2.Environment().from_string(text).render(title="t", subtitle="s", cards=[], sections=[], lineage=[])
    assert meta in page
    for ours in (page, page.replace(meta, "")):
        (tmp_path / "page.html").write_text(ours)
        lakes.check_file(f"file://{tmp_path}/page.html", "page")
    (tmp_path / "page.html").write_text("<title>mine</title>")
    with pytest.raises(UserError, match="page.html is there, and is not replaced"):
        lakes.check_file(f"file://{tmp_path}/page.html", "page")


def test_a_removal_that_dies_leaves_what_can_still_be_told_as_ours(spark, tmp_path, monkeypatch):
    """By the next job, which ends it; a table of before is made ours before it is touched."""
    url = f"file://{tmp_path}/table"
    spark.range(3).write.parquet(url)
    fs = lakes.filesystem(url)[0]

    def dies(path, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tables.replacing(spark.range(4), url, "predictions"):
        monkeypatch.setattr(type(fs), "rm", lambda self, path, **options: dies(path))
    monkeypatch.undo()
    displaced = Path(lakes.filesystem(lakes.displaced(url))[1])
    for part in displaced.glob("part-*"):
        part.unlink()
    assert (displaced / lakes.OWNER).exists()
    with tables.replacing(spark.range(5), url, "predictions"):
        pass
    assert spark.read.parquet(url).count() == 5 and not displaced.exists()


def test_somebodys_own_pipeline_is_not_ours_for_its_class(spark, lake, digits, tmp_path):
    from pyspark.ml import PipelineModel
    from pyspark.ml.feature import VectorAssembler

    url = f"file://{tmp_path}/pipeline"
    PipelineModel([VectorAssembler(inputCols=["id"], outputCol="ids")]).save(url)
    with pytest.raises(UserError, match="found no _made_by_gan_spark.json in it"):
        lakes.check_replaceable(url, "pipeline")


def test_an_empty_folder_is_nobodys(spark, tmp_path):
    (tmp_path / "empty").mkdir()
    lakes.check_replaceable(f"file://{tmp_path}/empty", "predictions")


def test_tidying_leaves_what_only_looks_staged(tmp_path):
    """A folder named as one is staged, and a day old, that nothing says is ours."""
    folder = tmp_path / ".table.0123abcd"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    os.utime(folder / "chapter.txt", (0, 0))
    lakes.tidy(f"file://{tmp_path}/table")
    assert (folder / "chapter.txt").exists()
    lakes.claim(f"file://{folder}", "table")
    os.utime(folder / lakes.OWNER, (0, 0))
    lakes.tidy(f"file://{tmp_path}/table")
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../../evil", "..", ".", "", "a/b", "a*", "[x]", "-x", "a b"])
def test_no_name_leaves_the_lake(lake, name):
    root, config = str(Path(lake) / "inner"), make_config(lake, "gan", run="named")
    places = [
        lambda: registry.promote(root, name),
        lambda: registry.promote(root, "x", name),
        lambda: registry.rollback(root, name),
        lambda: registry.current(root, name),
        lambda: catalogue.lineage(root, name),
        lambda: Run.named(root, name),
    ]
    for where in places:
        with pytest.raises(UserError, match="expected letters, digits|no run at"):
            where()
    if name and "/" not in name:
        with pytest.raises(UserError, match="generate.table = .*: expected letters, digits"):
            lakes.table_url(make_config(lake, "gan", run="named", generate={"table": name}))
    with pytest.raises(UserError, match="(run|dataset) = .*: expected letters, digits"):
        parse({"run": name, "dataset": "d"})
    with pytest.raises(UserError, match="(run|dataset) = .*: expected letters, digits"):
        parse({"run": "r", "dataset": name})
    assert not (Path(lake).parent / "evil.json").exists() and report and config


def test_a_table_outside_the_lake_is_no_pattern(lake):
    with pytest.raises(UserError, match="generate.table = .*: expected a path without any of"):
        lakes.table_url(make_config(lake, "gan", run="named", generate={"table": "/data/[ab]/x"}))
