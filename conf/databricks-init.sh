#!/usr/bin/env bash
# Cluster init script for Databricks Runtime 15.4 LTS ML: TensorFlow as pinned (the runtime's is 2.16, with Keras 3), and Horovod built against it.
# On GPUs add HOROVOD_GPU_OPERATIONS=NCCL.
set -euo pipefail
pip=/databricks/python/bin/pip
$pip install "tensorflow==2.15.1" "numpy==1.26.4" "pyarrow==14.0.2" "petastorm==0.12.1" "setuptools<70" "cmake<4" cloudpickle cffi packaging psutil pyyaml
$pip uninstall -y horovod
HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
    $pip install --no-build-isolation --no-deps "horovod==0.28.1"
