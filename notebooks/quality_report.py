# Databricks notebook source
# MAGIC %md
# MAGIC # How good is a run?
# MAGIC
# MAGIC FID, KID, precision and recall of its generated images against real ones, and a page to look at. The run must
# MAGIC have been trained and its images generated, for instance by the notebook `quickstart`.

# COMMAND ----------

dbutils.widgets.text("lake", "dbfs:/gan_spark", "root of the lake")
dbutils.widgets.text("config", "quickstart.toml", "config of the run, in conf/")
dbutils.widgets.text("set", "", "more settings, key=value, with ; between")

# COMMAND ----------

from gan_spark.config import load
from gan_spark.models import config_class

settings = [
    f"lake={dbutils.widgets.get('lake')}",
    *(each.strip() for each in dbutils.widgets.get("set").split(";") if each.strip()),
]
config = load(f"../conf/{dbutils.widgets.get('config')}", settings, config_class)

# COMMAND ----------

from gan_spark.runs.catalogue import runs

found = runs(config.lake)
display(
    spark.createDataFrame(
        [(row["run"], row["model"], row["dataset"], row["step"], row["fid"], row["promoted"]) for row in found],
        "run string, model string, dataset string, step long, fid double, promoted string",
    )
)

# COMMAND ----------

from gan_spark.quality.evaluate import evaluate

measured = evaluate(spark, config)
measured

# COMMAND ----------

from gan_spark import lake
from gan_spark.quality.report import report

page = report(spark, config)["report"]
displayHTML(lake.read_bytes(page).decode())
