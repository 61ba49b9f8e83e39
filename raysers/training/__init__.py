"""Fine-tuning on Ray Train: data, learner, loop, checkpoints, results."""
