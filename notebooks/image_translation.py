# Databricks notebook source
# MAGIC %md
# MAGIC # From one kind of image to another, without pairs
# MAGIC
# MAGIC CycleGAN learns to translate between clothes and the same clothes mirrored and recoloured, from images that are
# MAGIC never shown in pairs. The truth is known for the test images, so the error can be measured.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("steps", "4000", "steps of training")
dbutils.widgets.text("workers", "2", "Horovod ranks")
dbutils.widgets.text("path", "/dbfs/datasets/fashion-mnist", "folder of the IDX files")
dbutils.widgets.dropdown("from", "a", ["a", "b"], "domain to start from")
dbutils.widgets.text("images", "500", "how many to translate")
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
        ("generate.part", "from"),
        ("generate.images", "images"),
    )
]
settings += [each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()]
config = load("../conf/fashion-cyclegan.toml", settings, config_class)

# COMMAND ----------

from gan_spark.data.ingest import ingest
from gan_spark.training.driver import train

ingested = ingest(spark, config)
trained = train(spark, config)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Translate
# MAGIC Each image, and beside it what it became.

# COMMAND ----------

from gan_spark.quality.report import picture
from gan_spark.sampling.generate import generate

generated = generate(spark, config)
displayHTML(picture(generated["grid"], 720))
