"""The page about a run: what is on it, and how it looks in a real browser."""

import base64
import html
import re
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
from conftest import make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError, replaced
from gan_spark.data import images, splits
from gan_spark.quality import evaluate, report
from gan_spark.runs import registry
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(spark, lake, digits):
    """A conditional GAN of a few steps, generated from and measured."""
    made = make_config(
        lake,
        "cgan",
        "reported",
        train={"steps": 4, "log_every": 1},
        generate={"images": 40, "batch_size": 8},
        evaluate={"classifier_steps": 20},
    )
    driver.train(spark, made)
    generate.generate(spark, made)
    evaluate.evaluate(spark, made)
    return made


@pytest.fixture(scope="module")
def page(spark, config) -> tuple[str, str]:
    """(the page, its path)."""
    url = report.report(spark, config)["report"]
    return lakes.read_bytes(url).decode(), lakes.filesystem(url)[1]


def test_the_page_says_what_was_measured_and_where_it_came_from(config, page):
    quality = lakes.read_json(lakes.table_url(config) + ".quality.json")
    html = page[0]
    assert (
        f"{quality['fid']:.2f}" in html
        and f"floor {quality['fid_floor']:.2f}" in html
        and f"{quality['class_agreement']:.1%}" in html
    )
    for text in (
        "config.model.width",
        "fingerprint",
        "Losses",
        "Nearest real images",
        "From fixed seeds",
        "asked for and given",
        "<td>9</td>",
    ):
        assert text in html, text


def test_the_page_says_what_its_figures_cannot(config, page):
    quality = lakes.read_json(lakes.table_url(config) + ".quality.json")
    assert len(quality["caveats"]) >= 2
    for caveat in quality["caveats"]:
        assert f"<li>{caveat}</li>" in html.unescape(page[0])


def test_a_fid_at_its_floor_is_marked_beside_it():
    figures = {"fid": 24.66, "fid_floor": 24.23, "kid": 0.0, "kid_error": 0.0, "precision": 1.0, "recall": 1.0}
    notes = {told: next(report._cards({**figures, "distinguishable": told}))[2] for told in (True, False, None)}
    assert notes[False] == "floor 24.23: two halves of the real images, from which it cannot be told"
    assert notes[True] == notes[None] == "floor 24.23: two halves of the real images"


def test_it_needs_nothing_from_elsewhere(page):
    sources = re.findall(r'(?:src|href)="([^"]*)', page[0])
    assert len(sources) >= 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        assert images.decode_png(base64.b64decode(source.partition(",")[2])).size


def test_names_from_the_lake_are_text_and_not_markup():
    from importlib import resources

    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(
        resources.files("gan_spark.quality").joinpath("report.html").read_text()
    )
    html = template.render(
        title="t", subtitle="s", cards=[], sections=[], lineage=[("class", "<script>alert(1)</script>")]
    )
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_the_nearest_are_the_nearest(spark, config):
    record = report.Run.of(config).record()
    manifest = report.schema.read_manifest(record["dataset"]["url"])
    frame = splits.frame(spark, record["dataset"]["url"], "train")
    train = report.schema.unpack([row["image"] for row in frame.collect()], manifest.shape, manifest.encoding)
    sheet = images.decode_png(base64.b64decode(report._neighbours(frame, manifest, train[:2])["data"]))
    expected = []
    for target in train[:2]:
        near = np.argsort(np.square(train.astype(float) - target).sum((1, 2, 3)), kind="stable")[:4]
        expected += [target, *train[near]]
    made = np.asarray(images.convert(sheet, 1))
    assert np.array_equal(made[2:18, 2:38], images.grid(np.stack(expected), 10)[2:18, 2:38])  # itself comes first


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH")
def test_it_opens_in_a_browser(page, tmp_path):
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
        ]
        subprocess.run(
            [
                "chromium",
                *flags,
                "--window-size=1000,1200",
                f"--screenshot={tmp_path / 'page.png'}",
                f"file://{page[1]}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        shown = images.decode_png((tmp_path / "page.png").read_bytes())
        assert shown.shape[:2] == (1200, 1000) and shown.std() > 20 and (shown < 60).any()
        text = subprocess.run(
            ["chromium", *flags, "--dump-dom", f"file://{page[1]}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        assert "reported" in text and text.count("<img") >= 5


@pytest.mark.long
def test_a_promoted_model_is_measured_and_reported_where_it_generates(spark, lake, config):
    registry.promote(lake, "reported", "shown")
    asked = replaced(
        make_config(lake, "cgan", "another"),
        generate={"model": "shown", "images": 40, "batch_size": 8},
        evaluate=vars(config.evaluate),
    )
    generate.generate(spark, asked)
    made = report.report(spark, asked)
    html = lakes.read_bytes(made["report"]).decode()
    assert (
        made["table"].endswith("/generated/shown") and made["run"].endswith("/runs/reported") and "not measured" in html
    )
    found = evaluate.evaluate(spark, asked)
    assert (found["table"], found["run"], found["step"], found["generated_images"]) == (
        made["table"],
        made["run"],
        4,
        40,
    )
    url = f"{made['table']}.quality.json"
    quality = lakes.read_json(url)
    assert (
        f"{quality['fid']:.2f}" in (html := lakes.read_bytes(report.report(spark, asked)["report"]).decode())
        and "not measured" not in html
    )
    lakes.write_json(url, {**quality, "step": 1})  # measured were other rows of the table
    assert "not measured" in lakes.read_bytes(report.report(spark, asked)["report"]).decode()


def test_what_is_not_there_is_one_clear_error(spark, lake, digits, config):
    with pytest.raises(UserError, match="no generated table at .*; make it with jobs/generate.py"):
        report.report(spark, make_config(lake, "cgan", "reported", generate={"table": "none"}))
    with pytest.raises(UserError, match="no run at"):
        report.report(spark, make_config(lake, "cgan", "none"))
