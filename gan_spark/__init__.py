"""gan_spark trains generative image models on Spark clusters, from images in a data lake to generated images back in
the lake.
"""

import os
import warnings

# Workers import this package before TensorFlow, whose log is otherwise full of the absence of CUDA;
# errors of operations are Python exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow turns oneDNN on by itself only where the processor has AVX512-VNNI or the like; with AVX2 alone
# DCGAN's step is half as fast again with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Petastorm 0.12 is tied to pyarrow's legacy ParquetDataset, which warns of itself at every use.
warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")

__version__ = "0.1.0"
