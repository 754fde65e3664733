# Databricks notebook source
# MAGIC %md
# MAGIC # Transfer learning in a Spark ML pipeline
# MAGIC
# MAGIC A deep network that was trained on other images makes features of yours, and logistic regression learns your
# MAGIC classes from them.
# MAGIC `weights` is `imagenet`, which Keras fetches, a weights file, or empty for random ones.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("path", "/dbfs/datasets/flowers", "folder of images, a sub-folder a class")
dbutils.widgets.text("network", "InceptionV3", "network of Keras")
dbutils.widgets.text("weights", "imagenet", "its weights")
dbutils.widgets.text("set", "", "more settings, key=value, with ; between")

# COMMAND ----------

from gan_spark.config import load
from gan_spark.models import config_class

settings = [
    f"{key}={dbutils.widgets.get(widget)}"
    for key, widget in (
        ("lake", "lake"),
        ("ingest.path", "path"),
        ("featurize.network", "network"),
        ("featurize.weights", "weights"),
    )
]
settings += [each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()]
config = load("../conf/flowers-featurize.toml", settings, config_class)

# COMMAND ----------

from gan_spark.data.ingest import ingest

ingested = ingest(spark, config)
images = spark.read.parquet(ingested["dataset"])
display(images.groupBy("split", "label").count())

# COMMAND ----------

# MAGIC %md
# MAGIC ## Fit
# MAGIC 60% of the images are trained on, and 40% measured. The pipeline is saved in the lake, loaded, and measured as
# MAGIC loaded.

# COMMAND ----------

from gan_spark.ml.featurize import featurize

fitted = featurize(spark, config)
fitted["accuracy"]

# COMMAND ----------

display(
    spark.createDataFrame(
        [(name, other, count) for name, row in fitted["confusion"].items() for other, count in row.items()],
        "class string, given string, images int",
    )
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Use it again

# COMMAND ----------

from pyspark.ml import PipelineModel

model = PipelineModel.load(fitted["pipeline"])
display(model.transform(images.where("split = 'test'").limit(8)).select("id", "label", "prediction", "probability"))
