# Databricks notebook source
# MAGIC %md
# MAGIC # Pictures from sentences
# MAGIC
# MAGIC A text encoder and the first stage of StackGAN are trained on composed pictures and their captions; then it
# MAGIC draws sentences of yours, one a line in the widget.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("steps", "12000", "steps of training")
dbutils.widgets.text("workers", "2", "Horovod ranks")
dbutils.widgets.text("encoder_steps", "3000", "steps of the text encoder")
dbutils.widgets.text("count", "20000", "pictures to compose")
dbutils.widgets.text(
    "sentences",
    "a large red square at the top of a white background; on grey, the circle at the left is large and blue",
    "sentences, with ; between them",
)
dbutils.widgets.text("set", "", "more settings, key=value, with ; between")

# COMMAND ----------

import json

from gan_spark.config import load
from gan_spark.models import config_class

common = [
    f"{key}={dbutils.widgets.get(widget)}"
    for key, widget in (("lake", "lake"), ("train.workers", "workers"), ("ingest.count", "count"))
]
common += [each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()]
sentences = [each.strip() for each in dbutils.widgets.get("sentences").split(";")]
encoder = load(
    "../conf/shapes-text.toml", [*common, f"train.steps={dbutils.widgets.get('encoder_steps')}"], config_class
)
stage1 = load(
    "../conf/shapes-stackgan1.toml",
    [
        *common,
        f"train.steps={dbutils.widgets.get('steps')}",
        f"generate.captions={json.dumps(sentences)}",
        f"generate.images={8 * len(sentences)}",
    ],
    config_class,
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The text encoder
# MAGIC It learns which caption belongs to which picture.

# COMMAND ----------

from gan_spark.data.ingest import ingest
from gan_spark.training.driver import train

ingest(spark, encoder)
matched = train(spark, encoder)
matched

# COMMAND ----------

# MAGIC %md
# MAGIC ## Stage I

# COMMAND ----------

ingested = ingest(spark, stage1)
display(spark.read.parquet(ingested["dataset"]).select("id", "caption").limit(5))

# COMMAND ----------

trained = train(spark, stage1)
trained

# COMMAND ----------

from gan_spark.quality.report import picture
from gan_spark.sampling.generate import generate

generated = generate(spark, stage1)
displayHTML(picture(generated["grid"]))

# COMMAND ----------

display(spark.read.parquet(generated["table"]).select("seed", "input"))
