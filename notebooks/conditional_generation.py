# Databricks notebook source
# MAGIC %md
# MAGIC # Images of the class that you ask for
# MAGIC
# MAGIC A conditional GAN is trained on images with labels; `class` is what it then draws. With an empty one, every
# MAGIC class in turn.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("steps", "10000", "steps of training")
dbutils.widgets.text("workers", "2", "Horovod ranks")
dbutils.widgets.text("path", "/dbfs/datasets/fashion-mnist", "folder of the IDX files")
dbutils.widgets.dropdown(
    "class",
    "",
    ["", "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "class to draw",
)
dbutils.widgets.text("images", "64", "how many")
dbutils.widgets.text("set", "", "more settings, key=value, with ; between")

# COMMAND ----------

from gan_spark.config import load
from gan_spark.models import config_class

settings = [
    f"{key}={dbutils.widgets.get(widget)}"
    for key, widget in (
        ("lake", "lake"),
        ("train.steps", "steps"),
        ("train.workers", "workers"),
        ("ingest.path", "path"),
        ("generate.label", "class"),
        ("generate.images", "images"),
    )
]
settings += [each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()]
config = load("../conf/fashion-cgan.toml", settings, config_class)

# COMMAND ----------

from gan_spark.data.ingest import ingest
from gan_spark.training.driver import train

ingested = ingest(spark, config)
trained = train(spark, config)

# COMMAND ----------

from gan_spark.quality.report import picture
from gan_spark.sampling.generate import generate

generated = generate(spark, config)
displayHTML(picture(generated["grid"]))

# COMMAND ----------

# MAGIC %md
# MAGIC ## How often it is obeyed
# MAGIC A classifier that is trained apart reads the images.

# COMMAND ----------

from gan_spark.quality.evaluate import evaluate

measured = evaluate(spark, config)
{key: measured[key] for key in ("class_agreement", "classifier_accuracy", "fid", "fid_floor") if key in measured}
