"""Starts a Ray cluster of the version that the first argument names; prints its address, ends when its stdin closes."""

import sys

import ray

ray.__version__ = sys.argv[1] if sys.argv[1:] else ray.__version__
ray.init(
    address="local",
    num_cpus=2,
    num_gpus=1,  # Ray believes it
    include_dashboard=False,
    log_to_driver=False,
    logging_level="ERROR",
    object_store_memory=80_000_000,
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
