"""Features of a network, and a linear classifier on top of them."""

from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression

from .. import lake, progress
from ..config import Config
from ..data import batches, splits
from .accuracy import agreement, labelled
from .featurizer import DeepImageFeaturizer


def featurize(spark, config: Config) -> dict:
    """A pipeline of a network's features and logistic regression: fitted on split train, measured on split test, saved
    at `<lake>/pipelines/<run>`, loaded and measured again.
    """
    options, url = config.featurize, lake.dataset_url(config)
    manifest = labelled(url)
    featurizer = DeepImageFeaturizer(
        modelName=options.network,
        weights=options.weights,
        inputCol="image",
        outputCol="features",
        handleInvalid="skip",  # logistic regression takes no null
    )
    classifier = LogisticRegression(
        maxIter=options.iterations, regParam=options.regularisation, elasticNetParam=options.elastic_net
    )
    target = lake.pipeline_url(config)
    lake.check_replaceable(target, "pipeline")
    with batches.at_most(spark, batches.FILES):
        # Kept, since fitting goes over its rows more than once.
        features = featurizer.transform(splits.frame(spark, url, "train")).select("features", "label").persist()
        with progress.part("features of split train", spark, manifest.rows["train"]):
            features.count()
        with progress.part("fitting", spark):
            _save(PipelineModel([featurizer, classifier.fit(features)]), target)
        features.unpersist()
        test = splits.frame(spark, url, "test")
        with progress.part("features of split test", spark, manifest.rows["test"]):
            figures = agreement(PipelineModel.load(target).transform(test), manifest.classes)
    return {
        "pipeline": target,
        "network": options.network,
        "weights": options.weights,
        "trained_on": manifest.rows["train"],
        **figures,
    }


def _save(pipeline: PipelineModel, target: str) -> None:
    """Puts the pipeline at `target` whole, in place of a former one."""
    lake.tidy(target)
    staged = lake.staging(target)
    try:
        lake.claim(staged, "pipeline")
        pipeline.save(staged)
        lake.check_replaceable(target, "pipeline")
        lake.replace(staged, target)
    finally:
        lake.remove(staged)
