# What every process of the cluster finds in its environment. local.yaml and sweep.sbatch read this file.

# A file system that all hosts share. Results and checkpoints; text embeddings, each computed once; weights from the
# Hugging Face hub, downloaded once.
export CORRDREAM_STORAGE=/mnt/corrdream/runs # <-
export CORRDREAM_CACHE=/mnt/corrdream/cache # <-
export HF_HOME=/mnt/corrdream/huggingface # <-

# A sweep joins the cluster that runs on its machine, instead of starting a Ray of its own.
export RAY_ADDRESS=auto
# Whoever can reach Ray's ports and has no token is refused. Left unset, Ray's programs disagree about it.
export RAY_AUTH_MODE=token
# What `ray job stop` gives a sweep to save every trial.
export RAY_JOB_STOP_WAIT_TIME_S=30
export RAY_USAGE_STATS_ENABLED=0

export PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"
