# Databricks notebook source
# MAGIC %md
# MAGIC # From a lake of images to generated images
# MAGIC
# MAGIC Handwritten digits are ingested into a Petastorm dataset, a DCGAN is trained on Horovod ranks, and what it draws
# MAGIC goes back to the lake as a table.
# MAGIC Training needs `workers` free task slots at once, on a cluster without autoscaling.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("steps", "3000", "steps of training")
dbutils.widgets.text("workers", "2", "Horovod ranks")
dbutils.widgets.text("set", "", "more settings, key=value, with ; between")

# COMMAND ----------

from gan_spark.config import load
from gan_spark.models import config_class

settings = [
    f"{key}={dbutils.widgets.get(widget)}"
    for key, widget in (("lake", "lake"), ("train.steps", "steps"), ("train.workers", "workers"))
]
settings += [each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()]
config = load("../conf/quickstart.toml", settings, config_class)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Ingest
# MAGIC What cannot be used is in `<dataset>.rejected`, with the reason.

# COMMAND ----------

from gan_spark.data.ingest import ingest

ingested = ingest(spark, config)
display(spark.read.parquet(ingested["dataset"]).groupBy("split", "label").count().orderBy("split", "label"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Train
# MAGIC Run the cell again after an interruption, and it goes on from the last checkpoint.

# COMMAND ----------

from gan_spark.training.driver import train

trained = train(spark, config)
trained

# COMMAND ----------

# MAGIC %md
# MAGIC ## Generate

# COMMAND ----------

from gan_spark.quality.report import picture
from gan_spark.sampling.generate import generate

generated = generate(spark, config)
displayHTML(picture(generated["grid"]))

# COMMAND ----------

display(spark.read.parquet(generated["table"]).select("run", "model", "step", "seed", "height", "width"))
