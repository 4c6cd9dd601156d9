"""Does GRPO-RM beat cross-entropy? Tasks x arms x learning rates x seeds; see docs/experiments.md."""
